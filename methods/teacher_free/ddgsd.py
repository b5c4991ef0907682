"""Data-distortion guided self-distillation (Xu & Liu, AAAI 2019, DOI 10.1609/aaai.v33i01.33015565)."""

from __future__ import annotations

from torch import Tensor

from kdbench.losses import in_float32, kl


@in_float32
def posterior_loss(a: Tensor, b: Tensor, temperature: float = 3.0) -> Tensor:
    """T² · [ KL( p_b || p_a ) + KL( p_a || p_b ) ] of two views' logits (B, K); the first of each pair is a constant.

    Summed over classes, averaged over the batch.
    """
    return kl(a, b.detach(), temperature) + kl(b, a.detach(), temperature)


@in_float32
def mean_feature_loss(a: Tensor, b: Tensor) -> Tensor:
    """‖ mean_i a_i - mean_i b_i ‖² of two views' features (B, D): their squared MMD with the linear kernel.

    winycg/Self-KD-Lib compares one number per view, the mean over B and D, whose square it weighs with 5e-4.
    """
    return (a.mean(0) - b.mean(0)).square().sum()
