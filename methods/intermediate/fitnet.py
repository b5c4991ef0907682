"""FitNets: hints for thin deep nets (Romero et al., ICLR 2015, arXiv:1412.6550)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method, Stage
from kdbench.settings import Share, Temperature
from kdbench.taps import Out, Spec, Taps


@in_float32
def hint_loss(guided: Tensor, hint: Tensor) -> Tensor:
    """Mean over B·C·H·W of (r(v) - u)², for the regressed guided layer and the hint.

    The paper's equation 3 is ½ ‖u - r(v)‖² summed; the mean is that of RepDistiller, to which the weight 100 belongs.
    """
    return F.mse_loss(guided, hint)


class Regressor(nn.Sequential):
    """Convolution, batch norm and (`use_relu`) ReLU from the guided layer (C, H, W) to the shape of the hint.

    The kernel follows from the sizes: 3x3 with stride 2 to halve, a transposed 4x4 to double, else a valid
    convolution of width 1 + H_s - H_t (the paper's regressor). The batch norm is RepDistiller's addition.
    """

    def __init__(self, guided: tuple[int, ...], hint: tuple[int, ...], use_relu: bool = True) -> None:
        if len(guided) != 3 or len(hint) != 3:
            raise DoesNotFit("FitNet regresses maps, (C, H, W): choose a stage as the hint (method.fitnet.hint).")
        (c_s, h_s, _), (c_t, h_t, _) = guided, hint
        conv: nn.Module
        if h_s == 2 * h_t:
            conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif 2 * h_s == h_t:
            conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif h_s >= h_t:
            conv = nn.Conv2d(c_s, c_t, 1 + h_s - h_t)
        else:
            raise DoesNotFit(
                f"FitNet cannot regress a {h_s}x{h_s} map to {h_t}x{h_t}: choose another hint (method.fitnet.hint)."
            )
        super().__init__(conv, nn.BatchNorm2d(c_t), *([nn.ReLU()] if use_relu else []))


class FitNet(Method):
    """Two stages: the student up to the guided layer learns the hint; then the whole student is distilled.

    Stage ``hint``:     L = `hint_loss`( r(s), t )
    Stage ``distil``:   L = CE(y, s) + λ · T² · KL( softmax(t / T) || softmax(s / T) ), λ falling linearly

    With ``hint_share = 0`` both merge into RepDistiller's one stage, L = CE(y, s) + β · `hint_loss`; then there is no
    term ``kd``, nor a weight of it.

    Args:
        hint: tap of teacher and student where the hint is given.
        hint_share: share of the epochs spent on the hint, within the protocol's budget.
        temperature: T of the second stage.
        use_relu: whether the regressor ends in a ReLU, as a hint after one does; for a hint before it (``pre2``), not.
    """

    leaf = "intermediate/features"
    paper = "romero2014fitnets"
    title = "FitNet"
    added: ClassVar = {"use_relu": True}
    survey: ClassVar = {
        "teacher_transform": "none",
        "student_transform": "convolutional regressor",
        "knowledge": "feature map",
        "position": "one middle layer",
        "distance": "L2",
        "lost": "none",
    }

    def __init__(
        self,
        hint: str = "stage2",
        hint_share: Share = 0.125,
        temperature: Temperature = 3.0,
        use_relu: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hint, self.hint_share, self.temperature, self.use_relu = hint, hint_share, temperature, use_relu
        self.taps = Taps(student=(hint,), teacher=(hint,))
        self.terms = ("hint", "ce", "kd") if hint_share > 0 else ("hint", "ce")

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.regressor = Regressor(student.shapes[self.hint], teacher.shapes[self.hint], self.use_relu)

    def stages(self) -> Sequence[Stage]:
        if self.hint_share == 0:
            return (Stage("joint"),)
        return (Stage("hint", self.hint_share), Stage("distil", 1 - self.hint_share))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        if self.stage == "distil":
            return {"ce": cross_entropy(s.logits, batch.y), "kd": kl(s.logits, t.logits, self.temperature)}
        hint = {"hint": hint_loss(self.regressor(s[self.hint]), t[self.hint])}
        return hint if self.stage == "hint" else hint | {"ce": cross_entropy(s.logits, batch.y)}
