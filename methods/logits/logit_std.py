"""Logit standardisation in knowledge distillation (Sun et al., CVPR 2024, arXiv:2403.01427)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature, Weight
from kdbench.taps import Out
from methods.logits.dkd import DKD, dkd_loss

EPS = 1e-7
"""Added to the deviation: sunshangquan/logit-standardization-KD, mdistiller/distillers/KD.py."""


@in_float32
def standardised(logits: Tensor) -> Tensor:
    """Z(z) = (z - mean z) / std z over the classes of each sample, (B, K) (algorithm 1); std divides by K - 1.

    Gradients flow through mean and deviation.
    """
    deviation = logits.std(1, keepdim=True)
    return (logits - logits.mean(1, keepdim=True)) / (deviation + EPS)


class LogitStd(Method):
    """L = λ_ce · CE(y, s) + λ_kd · T² · KL( softmax(Z(t) / T) || softmax(Z(s) / T) ), Z as in `standardised`.

    Student and teacher so have a temperature each, T times the deviation of their own logits.
    """

    leaf = "logits/softened-labels"
    paper = "sun2024logit"
    title = "KD + logit std"
    extension = True
    terms = ("ce", "kd")
    survey: ClassVar = {
        "description": "softened probabilities of standardised logits",
        "objective": "CE(y, s) + λ T² KL(Z(t)/T, Z(s)/T)",
    }

    def __init__(self, temperature: Temperature = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": kl(standardised(s.logits), standardised(t.logits), self.temperature),
        }


class LogitStdDKD(DKD):
    """L = CE(y, s) + ramp · (α · TCKD + β · NCKD) of logits Z(s), Z(t), Z as in `standardised`; see `dkd_loss`."""

    leaf = "logits/softened-labels"
    paper = "sun2024logit"
    title = "DKD + logit std"
    survey: ClassVar = {
        "description": "DKD of standardised logits",
        "objective": "CE(y, s) + α TCKD + β NCKD of Z(t), Z(s)",
    }

    def __init__(self, alpha: Weight = 9.0, beta: Weight = 81.0, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(alpha=alpha, beta=beta, temperature=temperature, **kwargs)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        z_s, z_t = standardised(s.logits), standardised(t.logits)
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "dkd": dkd_loss(z_s, z_t, batch.y, self.alpha, self.beta, self.temperature),
        }
