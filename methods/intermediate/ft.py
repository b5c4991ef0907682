"""Paraphrasing complex network: factor transfer (Kim, Park, Kwak, NeurIPS 2018, arXiv:1802.04977)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, to_smaller
from kdbench.method import Method, Player, Stage
from kdbench.settings import Share
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.at import attention

Variant = Literal["authors", "repdistiller"]


@in_float32
def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B·m·H·W of | f_s / ‖f_s‖₂ - f_t / ‖f_t‖₂ | for factors f (B, m, H, W), each image's taken as a vector.

    The paper's p = 1, as in the authors' code. The larger factor is average-pooled to the smaller first.
    """
    s, t = (F.normalize(factor.flatten(1), dim=1) for factor in to_smaller(student, teacher))
    return F.l1_loss(s, t)


@in_float32
def attention_factor_loss(student: Tensor, teacher: Tensor, p1: float = 2.0, p2: float = 1.0) -> Tensor:
    """RepDistiller's (distiller_zoo/FT.py): mean over B·H·W of |g(f_s) - g(f_t)|^p2, g(f) = `attention` of power p1.

    So factors are compared as attention maps, without their channels.
    """
    s, t = (attention(factor, p1) for factor in to_smaller(student, teacher))
    return (s - t).abs().pow(p2).mean()


@in_float32
def paraphrase_loss(decoded: Tensor, teacher: Tensor, variant: Variant = "authors") -> Tensor:
    """Mean over elements of |D(f) - t| in the authors' code, of (D(f) - t)² in the paper and in RepDistiller."""
    return F.l1_loss(decoded, teacher) if variant == "authors" else F.mse_loss(decoded, teacher)


def layers(conv: type[nn.Conv2d | nn.ConvTranspose2d], widths: Sequence[int], norm: bool = False) -> nn.Sequential:
    """3x3 convolutions of stride 1 through `widths`, each with a LeakyReLU, and a batch norm in front of that."""
    made: list[nn.Module] = []
    for c_in, c_out in pairwise(widths):
        made += [conv(c_in, c_out, 3, padding=1), *([nn.BatchNorm2d(c_out)] if norm else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*made)


class Paraphraser(nn.Module):
    """An auto-encoder of the teacher's map of C channels, whose code of m channels is the factor."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = layers(nn.Conv2d, (channels, channels, factors, factors))
        self.decoder = layers(nn.ConvTranspose2d, (factors, factors, channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """The map as it is told by its factor."""
        told: Tensor = self.decoder(self.encoder(x))
        return told


def translator(channels: int, factors: int, norm: bool = False) -> nn.Sequential:
    """From the student's map to its factor; in RepDistiller with batch norms."""
    return layers(nn.Conv2d, (channels, channels, factors, factors), norm)


class FactorTransfer(Method):
    """Two stages: a paraphraser learns the teacher's map by heart; then the student's translator matches its factors.

    Stage ``paraphrase``:  L = `paraphrase_loss`( D(E(t)), t ), without labels and without the student
    Stage ``transfer``:    L = CE(y, s) + β · `factor_loss`( translator(s), E(t) )

    of the last stages' maps, with factors of m = k · C channels, C those of the teacher. In the variant
    ``repdistiller`` the second term is `attention_factor_loss`, the first squared, and the translator has batch norms.

    Args:
        rate: k.
        paraphraser_share: share of the epochs of the first stage, within the protocol's budget.
        variant: whose losses and translator.
    """

    leaf = "intermediate/features"
    paper = "kim2018paraphrasing"
    title = "FT"
    taps = Taps(student=("stage-1",), teacher=("stage-1",))
    terms = ("reconstruction", "ce", "ft")
    survey: ClassVar = {
        "teacher_transform": "encoder (paraphraser)",
        "student_transform": "convolutions (translator)",
        "knowledge": "factors of the feature map",
        "position": "end of the last stage",
        "distance": "L1 of normalised factors",
        "lost": "what the paraphraser does not keep",
    }

    def __init__(
        self,
        rate: Annotated[float, Field(gt=0)] = 0.5,
        paraphraser_share: Annotated[Share, Field(gt=0)] = 0.03,
        variant: Variant = "authors",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.paraphraser_share, self.variant = rate, paraphraser_share, variant

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        (self.own,), (self.taught,) = student.resolve(self.taps.student), teacher.resolve(self.taps.teacher)
        channels = teacher.channels(self.taught)
        factors = max(1, round(self.rate * channels) if self.variant == "authors" else int(self.rate * channels))
        self.paraphraser = Paraphraser(channels, factors)
        self.translator = translator(student.channels(self.own), factors, norm=self.variant == "repdistiller")

    def stages(self) -> Sequence[Stage]:
        return (Stage("paraphrase", self.paraphraser_share), Stage("transfer", 1 - self.paraphraser_share))

    def players(self) -> Sequence[Player]:
        if self.stage == "paraphrase":
            return (Player("paraphraser", list(self.paraphraser.parameters())),)
        return (Player("student", [*self.student.parameters(), *self.translator.parameters()]),)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.stage == "transfer":
            yield from super().turns(batch)
            return
        told = self.teacher_out(batch.for_teacher.x)[self.taught]
        yield "paraphraser", {"reconstruction": paraphrase_loss(self.paraphraser(told), told, self.variant)}

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            factor = self.paraphraser.encoder(t[self.taught])
        compare = factor_loss if self.variant == "authors" else attention_factor_loss
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "ft": compare(self.translator(s[self.own]), factor),
        }
