"""Several teachers' features, unions of classes, and students that are customised: what golden numbers do not cover."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, batches, bind, changed, fit, state, watch
from test_pools import pooled
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.method import Method
from kdbench.taps import Spec
from methods.multi_teacher.feed import ParallelFEED, SequentialFEED
from methods.multi_teacher.ka import KA, groups_of_taps, of_one_size

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader|eval mode)"
)


def kl(log_p: Tensor, q: Tensor) -> Tensor:
    return (q * (q.log() - log_p)).sum(1).mean()


def terms(method: Method, batch: Batch) -> dict[str, Tensor]:
    return method.losses(method.student_out(batch.x), method.teach(batch), batch)  # type: ignore[arg-type]


# ---- KA -----------------------------------------------------------------------------------------------------------


def test_stages_are_grouped_from_the_deepest() -> None:
    def spec(name: str, stages: int) -> Spec:
        return Spec(name, {f"stage{k}": (k, 8, 8) for k in range(1, stages + 1)})

    groups = groups_of_taps(spec("student", 3), [spec("wide", 3), spec("deep", 4)])
    assert groups == [("stage1", "stage1", "stage2"), ("stage2", "stage2", "stage3"), ("stage3", "stage3", "stage4")]
    groups = groups_of_taps(spec("student", 3), [spec("deep", 4), spec("shallow", 2)])
    assert groups == [("stage2", "stage3", "stage1"), ("stage3", "stage4", "stage2")]


def test_larger_maps_are_pooled_to_the_smallest() -> None:
    a, b = torch.arange(16.0).view(1, 1, 4, 4), torch.zeros(1, 2, 2, 2)
    pooled_a, same_b = of_one_size([a, b])
    assert pooled_a.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert same_b is b


def test_logits_may_be_amalgamated_as_in_the_paper() -> None:
    method, (batch,) = pooled(KA(targets="mse"), (4, 0, 2), (1, 3, 5)), batches(1)
    t = method.teach(batch)
    assert t is not None
    s = method.student_out(batch.x).logits
    squares = (s[:, [4, 0, 2, 1, 3, 5]] - torch.cat([each.logits for each in t.each], dim=1)).square()
    (player, told), (other, _) = method.turns(batch)
    assert (player, other) == ("student", "codes")
    assert told["kd"].item() == pytest.approx(squares.mean().item(), rel=1e-5)


# ---- FEED ---------------------------------------------------------------------------------------------------------


def test_each_teacher_has_a_transformation_of_its_own() -> None:
    method, (batch,) = pooled(ParallelFEED(), None, None), batches(1)
    assert isinstance(method, ParallelFEED)
    s, t = method.student_out(batch.x), method.teach(batch)
    assert t is not None
    parts = [
        (F.normalize(layers(s["stage3"]).flatten(1)) - F.normalize(each["stage3"].flatten(1))).abs().mean()
        for layers, each in zip(method.transforms, t.each, strict=True)
    ]
    assert terms(method, batch)["feed"].item() == pytest.approx(sum(part.item() for part in parts), rel=1e-6)
    assert parts[0].item() != pytest.approx(parts[1].item(), rel=1e-3)


def test_each_generation_is_transformed_afresh() -> None:
    method = bind(SequentialFEED(generations=3, protocol=PLAIN.model_copy(update={"epochs": 3})))
    assert isinstance(method, SequentialFEED)
    turns, first, learned = watch(method), state(method), {}
    after = method.after_step

    def note(batch: Batch) -> None:
        learned[method.stage] = {name.split(".")[1] for name in changed(method, first) if name.startswith("transforms")}
        after(batch)

    method.after_step = note  # type: ignore[method-assign]
    fit(method, batches(1), 3)
    assert learned == {"generation1": set(), "generation2": {"0"}, "generation3": {"0", "1"}}
    assert [sorted(turn.terms) for turn in turns] == [["first"], ["ce", "feed"], ["ce", "feed"]]
