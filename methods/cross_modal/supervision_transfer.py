"""Cross modal distillation for supervision transfer (Gupta, Hoffman, Malik, CVPR 2016, arXiv:1507.00448)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy
from kdbench.method import Method, Snapshot, Stage
from kdbench.settings import Share
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.fitnet import hint_loss
from methods.intermediate.widths import same_width


class Adapter(nn.Module):
    """From the student's map, (C, H, W), to the teacher's: pooled or repeated to its size, and `same_width`."""

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        super().__init__()
        self.size = (teacher[1], teacher[2])
        self.width = same_width(student, teacher)

    def forward(self, feature: Tensor) -> Tensor:
        found: Tensor = self.width(F.adaptive_avg_pool2d(feature, self.size))
        return found


class Transferred(nn.Module):
    """The student up to its mid-level map, called `tap`, which stands in for the teacher's, and what is behind that."""

    def __init__(self, student: nn.Module, tap: str, adapter: Adapter, upper: Snapshot) -> None:
        super().__init__()
        self.student, self.tap_name, self.adapter, self.upper = student, tap, adapter, upper

    def forward(self, x: Tensor) -> Tensor:
        feature = self.student.tap(x, (self.tap_name,))[self.tap_name]  # type: ignore[operator]
        logits: Tensor = self.upper(self.adapter(feature))
        return logits


class SupervisionTransfer(Method):
    """L = `hint_loss`( r(s(x)), t(x*) ) of mid-level maps, and no labels; the teacher's upper layers are deployed.

    The teacher sees the modality x* that there are labels for, the student the new one, x (scenario=paired). That is
    the paper's zero-shot recognition: layers behind the map are the teacher's own, and r is a linear 1x1 convolution
    where channels differ. The squared distance of equation 1 is averaged over B·C·H·W.

    Args:
        layer: tap of the map of both networks.
    """

    leaf = "cross-modal/unsupervised"
    paper = "gupta2016cross"
    title = "Supervision transfer"
    needs = frozenset({"teacher"})
    terms = ("transfer",)
    survey: ClassVar = {
        "source": "images with labels",
        "target": "depth, optical flow",
        "teachers": "1",
        "online": "no",
        "knowledge": "mid-level maps",
        "labels": "no",
        "compression": "possible",
    }

    def __init__(self, layer: str = "stage-1", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.taps = Taps(student=(layer,), teacher=(layer,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        (self.own,), (self.taught,) = student.resolve(self.taps.student), teacher.resolve(self.taps.teacher)
        if not hasattr(teacher.net, "tail"):
            raise DoesNotFit("this teacher cannot be cut behind a stage: choose a pair of the zoo's image classifiers.")
        adapter = Adapter(student.shapes[self.own], teacher.shapes[self.taught])
        self.net = Transferred(self.student, self.own, adapter, Snapshot(teacher.net.tail(self.taught)))  # type: ignore[union-attr,operator]

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"transfer": hint_loss(self.net.adapter(s[self.own]), t[self.taught])}

    def deployed(self) -> nn.Module:
        return self.net


class FineTuned(Method):
    """Two stages: supervision transfer without labels is how the student begins; then it learns from labels alone.

    Stage ``transfer``:   L = `hint_loss`( r(s(x)), t(x*) )
    Stage ``finetune``:   L = CE(y, s(x)),  with the student's own upper layers, which the first stage left untrained

    Args:
        layer: tap of the map of both networks.
        transfer_share: share of the epochs spent on the first stage, within the protocol's budget.
    """

    leaf = "cross-modal/unsupervised"
    paper = "gupta2016cross"
    title = "Supervision transfer, fine-tuned"
    terms = ("transfer", "ce")
    survey: ClassVar = SupervisionTransfer.survey | {"labels": "of the target, later"}

    def __init__(self, layer: str = "stage-1", transfer_share: Share = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transfer_share = transfer_share
        self.taps = Taps(student=(layer,), teacher=(layer,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        (self.own,), (self.taught,) = student.resolve(self.taps.student), teacher.resolve(self.taps.teacher)
        self.adapter = Adapter(student.shapes[self.own], teacher.shapes[self.taught])

    def stages(self) -> Sequence[Stage]:
        return (Stage("transfer", self.transfer_share), Stage("finetune", 1 - self.transfer_share))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        if self.stage == "transfer":
            return {"transfer": hint_loss(self.adapter(s[self.own]), t[self.taught])}
        return {"ce": cross_entropy(s.logits, batch.y)}
