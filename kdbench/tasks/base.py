"""What is asked of a network: a task has a supervised loss, knows how its targets move, and measures with a meter.

A new task is one class in any file, and a scenario or a source of data whose `DataSpec` names it (``mypkg.Counting``)::

    class CountingMeter(Meter):
        def __init__(self):
            super().__init__()
            self.errors = Scores()

        def update(self, net, batch):
            self.errors.update((net(batch.x).squeeze(1) - batch.y).abs())

        def compute(self):
            return {"MAE": self.errors.rows().mean()}

        def examples(self):
            return self.errors.rows()

    @dataclass(frozen=True)
    class Counting(Task):
        name = "counting"
        primary = Measure("MAE", higher=False, unit="")

        def loss(self, output, target):
            return (output.squeeze(1) - target).abs().mean()

        def meter(self, data):
            return CountingMeter()

A `kdbench.measures.Measure` is a column of a table: its name, whether higher is better, its unit. The *primary* one is
ranked; a meter may have others. Fields of the dataclass are the settings that a data set gives (the value of unlabelled
pixels, say). A method that says ``counting`` in its `tasks` trains on ``self.task.loss(s.logits, batch.y)``.

No other code evaluates anything: few-shot episodes, attacks and games are meters, not branches. Tasks to come need
nothing more than this either; their data are known already (`kdbench.data.kinds`):

* detection: targets are boxes padded to (N, M, 5), `moved` shifts and mirrors them and drops what left the image,
  ``logits`` is the raw output of the head, and the meter holds torchmetrics' ``MeanAveragePrecision`` (``mAP``);
* translation: targets are images (N, C, H, W) that move as their inputs do; the meter measures a distance to them
  (``L1``), the discriminators of a method being its players;
* video: clips are (N, H, W, T * C), which crop and flip as images do; the task is `Classification`.

What a task does not own: distillation, optimisers, networks. The modules of this package know nothing of
`kdbench.data`, for a data set names its task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from kdbench.measures import Measure

if TYPE_CHECKING:
    from kdbench.data.batch import Batch, DataSpec


class Meter(nn.Module):
    """Measures a deployed network over one split: `begin`, one `update` for each batch, then `compute`.

    State lies in buffers and torchmetrics' metrics, so that it is where the network is. What must outlive an evaluation
    (of earlier experiences, say) lies in persistent buffers, which a checkpoint keeps; they change in place only, as
    some evaluations run under ``inference_mode`` and others under ``no_grad``.

    Attributes:
        experience: number of the part of the data that the network was taught last, set before each evaluation; 0
            where data come whole.
        split: what it measures.
    """

    experience: int = 0
    split: str = "test"

    def begin(self) -> None:
        """An evaluation begins: forget the batches of the one before."""
        for module in self.modules():
            if isinstance(module, Metric):
                module.reset()

    def update(self, net: nn.Module, batch: Batch) -> None:
        """Measure a network (in eval mode, see `kdbench.taps.Net`) on the next batch of the split.

        It gets the network instead of its logits because not every measure is one of logits: attacks need gradients,
        episodes embeddings, and a policy plays.
        """
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """All measures of the split by name, scalars in their units, the task's primary one among them."""
        raise NotImplementedError

    def examples(self) -> Tensor:
        """One score for each example (or episode) in the order updated: (N,), bool where it is right or wrong, else
        float32 in the unit of the primary measure. Paired tests compare them."""
        raise NotImplementedError


class Task:
    """What is asked of a network.

    Attributes:
        name: what methods say in their `tasks`. Tasks that only measure differently share it.
        primary: the measure that is ranked.
        cumulative: whether `primary` sums up the course of training, as the average over experiences does: an earlier
            epoch answers another question, so there is no best one to select.
        zoo: the kind of outputs that it judges, and so the networks that serve it: a key of `kdbench.models.ZOOS`.
    """

    name: ClassVar[str]
    primary: ClassVar[Measure]
    cumulative: ClassVar[bool] = False
    zoo: ClassVar[str] = "classification"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The supervised loss of a batch of outputs (``logits``), a scalar: the mean over what has a target."""
        raise NotImplementedError

    def moved(self, target: Tensor, view: Tensor, pad: int) -> Tensor:
        """Targets of images that are seen as `view`, int64 (B, 3), see `kdbench.data.batch.Batch`: padded by `pad` on
        each side, cropped at (dy, dx), flipped left to right. By default they stay as they are."""
        return target

    def meter(self, data: DataSpec) -> Meter:
        """A meter for one split of `data`."""
        raise NotImplementedError


class Scores(Metric):
    """Collects one value (or row) for each example, in the order of the batches."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        self.values.append(values.detach())

    def rows(self) -> Tensor:
        """(N, ...); where `compute` would drop the axis of a single number."""
        return torch.cat(self.values)

    compute = rows
