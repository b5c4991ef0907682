"""VAT: virtual adversarial training (Miyato et al., TPAMI 2018, arXiv:1704.03976)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Count, Positive

Form = Literal["author", "pytorch"]
Net = Callable[[Tensor], Tensor]


@in_float32
def unit(v: Tensor, form: Form = "author") -> Tensor:
    """v / ‖v‖ of each sample, (B, ...), with the ε of takerum/vat_tf, or of lyakaap/VAT-pytorch."""
    rows = v.flatten(1)
    if form == "pytorch":
        return (rows / (rows.norm(dim=1, keepdim=True) + 1e-8)).view_as(v)
    rows = rows / (1e-12 + rows.abs().amax(1, keepdim=True))
    return (rows / (1e-6 + rows.square().sum(1, keepdim=True)).sqrt()).view_as(v)


@in_float32
def adversarial_perturbation(
    net: Net, x: Tensor, logits: Tensor, start: Tensor, xi: float, eps: float, iterations: int, form: Form = "author"
) -> Tensor:
    """r_vadv = ε · u after power iterations u <- ∇ KL( p(x) || p(x + ξ·u) ), each brought to length 1 (algorithm 1).

    Float32 cannot hold what the code's ξ of 1e-6 changes: pass 1e-3 or more.

    Args:
        net: logits (B, K) of images (B, ...).
        logits: of `x`, a constant.
        start: u at first, of any length, like `x`.
        form: ``author`` derives by the perturbation itself, ``pytorch`` by u, which moves the ε of `unit`.

    Returns:
        A perturbation like `x`, without gradient.
    """
    logits, u = logits.detach(), unit(start, form)
    for _ in range(iterations):
        u = (xi * u if form == "author" else u).detach().requires_grad_()
        shift = u if form == "author" else xi * u
        (slope,) = torch.autograd.grad(kl(net(x + shift), logits), u)
        u = unit(slope, form)
    return eps * u


@contextmanager
def untraced(net: nn.Module) -> Iterator[None]:
    """What passes `net` meanwhile leaves no trace in its running statistics, though it is normalised as in training."""
    norms = [module for module in net.modules() if getattr(module, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True  # type: ignore[assignment]


class VAT(Method):
    """The student says of an unlabelled image what it says of the nearby image that would change its mind most.

    L = CE(y, s(x)) on labelled images + w · KL( softmax(s(x)) || softmax(s(x + r_vadv)) ) on unlabelled ones

    The first side of KL is a constant, r_vadv the `adversarial_perturbation` from a random start. Unlabelled images are
    normalised by their own batches and leave no trace in running statistics, as in the authors' code, which draws them
    from all images, labelled or not. They are seen in float32 whatever the protocol's precision, which would lose ξ.

    Args:
        xi: ξ, how far from x the direction is found.
        eps: ε, the length of r_vadv, in units of normalised images.
        iterations: of the power method, a forward and a backward pass each.
        form: ``author`` (takerum/vat_tf) starts from a normal direction, ``pytorch`` (lyakaap/VAT-pytorch) from a
            uniform one; see `adversarial_perturbation`.
    """

    leaf = "learning/semi-self-supervised"
    paper = "miyato2018virtual"
    title = "VAT"
    needs = frozenset({"labels", "unlabelled"})
    terms = ("ce", "vat")
    survey: ClassVar = {
        "supervision": "semi-supervised",
        "labelled_data": "a part",
        "consistency": "KL to the prediction under an adversarial perturbation",
    }

    def __init__(
        self, xi: Positive = 1e-3, eps: Positive = 8.0, iterations: Count = 1, form: Form = "author", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.xi, self.eps, self.iterations, self.form = xi, eps, iterations, form

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        ce = cross_entropy(self.student_out(batch.x).logits, batch.y)
        x = batch["unlabelled"].x
        with untraced(self.student), torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x).detach()
            r = adversarial_perturbation(
                self.logits, x, logits, self.direction(x), self.xi, self.eps, self.iterations, self.form
            )
            vat = kl(self.logits(x + r), logits)
        yield "student", {"ce": ce, "vat": vat}

    def logits(self, x: Tensor) -> Tensor:
        return self.student_out(x).logits

    def direction(self, x: Tensor) -> Tensor:
        """A random direction for each image."""
        if self.form == "pytorch":
            return (torch.rand(x.shape, generator=self.rng) - 0.5).to(x)
        return torch.randn(x.shape, generator=self.rng).to(x)
