"""Tasks: losses, how targets move, and meters, against formulas written out with numpy, scikit-learn and loops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.metrics import jaccard_score
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from kdbench.data.batch import Batch, DataSpec
from kdbench.data.views import crop, normalise
from kdbench.draws import random_bits
from kdbench.errors import UserError
from kdbench.measures import FURTHER
from kdbench.tasks import (
    PGD,
    TASKS,
    Classification,
    ClassIncremental,
    Depth,
    DomainIncremental,
    Episodes,
    Meter,
    Robust,
    Segmentation,
    Task,
    task_of,
)
from kdbench.tasks.depth import berhu
from kdbench.tasks.lookup import OURS

MEAN, STD = (0.5, 0.4), (0.25, 0.2)


def spec(num_classes: int = 4, **more: Any) -> DataSpec:
    return DataSpec("made-up", (2, 4, 4), num_classes, n_train=0, n_test=0, **more)


class Given(nn.Module):
    """Says what it is given: inputs are outputs, and embeddings too."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def tap(self, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        return dict.fromkeys(names, x)


def batches(x: Tensor, y: Tensor, size: int) -> Iterator[Batch]:
    for part in torch.arange(len(y)).split(size):
        yield Batch(x[part], y[part], part, torch.zeros(len(part), 3, dtype=torch.int64))


def evaluate(meter: Meter, x: Tensor, y: Tensor, net: nn.Module | None = None, size: int = 7) -> dict[str, float]:
    meter.begin()
    for batch in batches(x, y, size):
        meter.update(net or Given(), batch)
    found = meter.compute()
    assert all(value.shape == () for value in found.values())
    return {name: value.item() for name, value in found.items()}


# ---- all of them -----------------------------------------------------------------------------------------------------


def case(name: str) -> tuple[Task, DataSpec, Tensor, Tensor, nn.Module]:
    """A task with data of 40 samples and a network."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(4, (40,), generator=draw)
    scores = torch.randn(40, 4, generator=draw)
    maps = torch.randn(40, 4, 4, 4, generator=draw)
    if name == "class-incremental":
        return ClassIncremental(), spec(experiences=(2, 4)), scores, y, Given()
    if name == "domain-incremental":
        return DomainIncremental(), spec(experiences=(4, 4), arrivals={"test": (15, 25)}), scores, y, Given()
    if name == "few-shot":
        return Episodes(way=3, shot=2, query=3, episodes=50), spec(), scores, y, Given()
    if name == "robust":
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)).eval()
        pixels = torch.randint(256, (40, 2, 4, 4), generator=draw, dtype=torch.uint8)
        return Robust(steps=3), spec(mean=MEAN, std=STD), normalise(pixels, *map(torch.tensor, (MEAN, STD))), y, net
    if name == "segmentation":
        return Segmentation(ignore=4), spec(), maps, torch.randint(5, (40, 8, 8), generator=draw), Given()
    if name == "depth":
        return Depth(), spec(1), maps[:, :1] + 2, torch.rand(40, 8, 8, generator=draw).round(decimals=1) * 9, Given()
    return Classification(), spec(), scores, y, Given()


WITHOUT_PLAY = sorted({*OURS} - {"policy", "gaussian-policy"})


@pytest.mark.parametrize("name", WITHOUT_PLAY)
def test_meters_measure_the_same_whatever_the_size_of_batches(name: str) -> None:
    task, data, x, y, net = case(name)
    meter = task.meter(data)
    meter.experience = len(data.experiences or (0,)) - 1
    found = evaluate(meter, x, y, net, 40)
    assert found.keys() - {task.primary.name} <= FURTHER.keys()  # tables know their units and directions
    scores = meter.examples()
    assert task.primary.name in found
    assert scores.dtype in (torch.bool, torch.float32)
    assert scores.dim() == 1
    assert len(scores) == (50 if name == "few-shot" else 40)
    for size in (1, 3, 39):
        assert evaluate(meter, x, y, net, size) == pytest.approx(found, rel=1e-5)
        torch.testing.assert_close(meter.examples(), scores)


@pytest.mark.parametrize("name", WITHOUT_PLAY)
def test_meters_work_in_every_mode_and_after_it(name: str) -> None:
    task, data, x, y, net = case(name)
    meter = task.meter(data)
    meter.experience = len(data.experiences or (0,)) - 1
    found = evaluate(meter, x, y, net)
    modes: tuple[Callable[[], AbstractContextManager[Any]], ...] = (torch.inference_mode, torch.no_grad)
    for mode in (*modes, torch.enable_grad, *modes):
        with mode():
            assert evaluate(meter, x.clone(), y.clone(), net) == found
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", WITHOUT_PLAY)
def test_a_single_example_is_still_a_list_of_scores(name: str) -> None:
    if name == "few-shot":
        pytest.skip("an episode needs more than one")
    task, data, x, y, net = case(name)
    meter = task.meter(data)
    meter.experience = len(data.experiences or (0,)) - 1
    evaluate(meter, x[:1], y[:1], net)
    assert meter.examples().shape == (1,)


@pytest.mark.parametrize("name", WITHOUT_PLAY)
def test_only_what_outlives_an_evaluation_is_in_a_checkpoint(name: str) -> None:
    task, data, x, y, net = case(name)
    meter = task.meter(data)
    meter.experience = len(data.experiences or (0,)) - 1
    evaluate(meter, x, y, net)
    assert set(meter.state_dict()) == ({"hits", "totals"} if task.cumulative else set())


def test_tasks_are_compared_by_their_settings() -> None:
    assert Segmentation(ignore=11) == Segmentation(11) != Segmentation()
    assert hash(Robust(eps=4)) == hash(Robust(4))
    assert not {ClassIncremental()} & {Classification()}


# ---- lookup ----------------------------------------------------------------------------------------------------------


def test_tasks_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert task_of("segmentation", {"ignore": 11}) == Segmentation(11)
    assert task_of("robust") == Robust()
    (tmp_path / "counting_task.py").write_text(
        "from kdbench.tasks import Task\nclass Counting(Task):\n    name = 'counting'\nother = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert task_of("counting_task.Counting").name == "counting"
    with pytest.raises(UserError, match=r"counting_task.other is not a kdbench.tasks.Task: derive"):
        task_of("counting_task.other")
    with pytest.raises(UserError, match=r"dataset x: there is no task 'segmentaton' here: did you mean segmentation"):
        task_of("segmentaton", where="dataset x")
    with pytest.raises(UserError, match=r"cannot import no_such.Thing \(ModuleNotFoundError"):
        task_of("no_such.Thing")
    with pytest.raises(UserError, match=r"'depth' does not take \(got an unexpected keyword argument 'ignore'\)"):
        task_of("depth", {"ignore": 1})


def test_task_names_are_what_methods_say() -> None:
    assert set(TASKS) == {task.name for task in OURS.values()}
    assert TASKS["classification"] == "top1"
    assert Robust.name == Episodes.name == "classification"
    assert ClassIncremental.cumulative
    assert not Depth.primary.higher


# ---- classification --------------------------------------------------------------------------------------------------


def guo_ece(p: NDArray[Any], y: NDArray[Any], bins: int = 15) -> float:
    """Equation 3 of Guo et al. 2017, bin by bin, in percent."""
    confidence, right = p.max(1), p.argmax(1) == y
    total = 0.0
    for m in range(1, bins + 1):
        member = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if member.any():
            total += member.mean() * abs(right[member].mean() - confidence[member].mean())
    return 100 * total


@pytest.mark.parametrize(("num_classes", "scale"), [(4, 1.0), (10, 3.0), (100, 100.0)])
def test_classification(num_classes: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(num_classes)
    z = scale * torch.randn(500, num_classes, generator=draw)
    y = torch.randint(num_classes, (500,), generator=draw)
    z[::2] += scale * 2 * nn.functional.one_hot(y[::2], num_classes)
    meter = Classification().meter(spec(num_classes))
    found = evaluate(meter, z, y)

    logits, labels = z.double().numpy(), y.numpy()
    ranks = (logits > logits[np.arange(500), labels][:, None]).sum(1)
    assert set(found) == {"top1", "nll", "ece"} | ({"top5"} if num_classes > 5 else set())
    assert found["top1"] == pytest.approx(100 * (ranks < 1).mean())
    if num_classes > 5:
        assert found["top5"] == pytest.approx(100 * (ranks < 5).mean())
    assert found["nll"] == pytest.approx(-log_softmax(logits, 1)[np.arange(500), labels].mean(), rel=1e-5)
    # at the largest scale float32 rounds most confidences to exactly 1, which belong to the last bin
    assert found["ece"] == pytest.approx(guo_ece(softmax(z.numpy(), 1), labels), abs=1e-3)
    assert (meter.examples().numpy() == (logits.argmax(1) == labels)).all()


def test_top1_and_top5_are_torchmetrics_bit_for_bit() -> None:
    draw = torch.Generator().manual_seed(1)
    z, y = torch.randn(997, 10, generator=draw), torch.randint(10, (997,), generator=draw)
    found = evaluate(Classification().meter(spec(10)), z, y, size=500)
    for k in (1, 5):
        metric = MulticlassAccuracy(10, top_k=k, average="micro")
        metric.update(z, y)
        assert found[f"top{k}"] == (100 * metric.compute()).item()


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    # two that are sure, half of them right, and two that are 94 % sure and right: in one bin |0.75 - 0.97|, while a bin
    # of its own for those that are sure would make it (|0.5 - 1| + |1 - 0.94|) / 2
    odds = float(np.log(0.94 / 0.06))
    z = torch.tensor([[200.0, 0]] * 2 + [[odds, 0]] * 2)
    y = torch.tensor([0, 1, 0, 0])
    assert evaluate(Classification().meter(spec(2)), z, y)["ece"] == pytest.approx(22.0, abs=1e-4)


def test_half_precision_scores_are_measured_in_float32() -> None:
    z = torch.tensor([[30.0, 0, 0, 0]] * 3, dtype=torch.bfloat16)
    found = evaluate(Classification().meter(spec(4)), z, torch.tensor([0, 0, 1]))
    assert found["nll"] == pytest.approx(10.0, rel=1e-6)


# ---- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "fill"), [(Segmentation(11), 11), (Segmentation(-100), -100), (Depth(), 0)])
def test_targets_move_as_written_out_with_loops(task: Task, fill: int) -> None:
    draw = torch.Generator().manual_seed(0)
    pad, h, w = 2, 5, 6
    target = torch.randint(1, 10, (30, h, w), generator=draw)
    target = target.float() if isinstance(task, Depth) else target.to(torch.uint8)
    view = torch.stack([torch.randint(n, (30,), generator=draw) for n in (5, 5, 2)], 1)
    expected = torch.full((30, h, w), fill, dtype=torch.float64)
    for b, (dy, dx, flip) in enumerate(view.tolist()):
        for i in range(h):
            for j in range(w):
                row, column = i + dy - pad, (w - 1 - j if flip else j) + dx - pad
                if 0 <= row < h and 0 <= column < w:
                    expected[b, i, j] = target[b, row, column]
    assert (task.moved(target, view, pad) == expected).all()
    still = torch.zeros(30, 3, dtype=torch.int64)
    assert (task.moved(target, still, 0) == target).all()


def test_targets_move_with_their_images() -> None:
    draw = torch.Generator().manual_seed(0)
    mask = torch.randint(1, 200, (30, 7, 5), generator=draw, dtype=torch.uint8)
    view = torch.stack([torch.randint(n, (30,), generator=draw) for n in (9, 9, 2)], 1)
    images = crop(mask[..., None], *view.unbind(1), pad=4)[:, 0]  # pads with 0
    assert (Segmentation(0).moved(mask, view, 4) == images).all()


# ---- segmentation ----------------------------------------------------------------------------------------------------


def test_segmentation_counted_by_hand() -> None:
    # two images of four pixels and four classes, the last of which appears nowhere; x is unlabelled
    target = torch.tensor([[[0, 0], [1, 9]], [[2, 2], [0, 1]]])
    taken = torch.tensor([[[0, 1], [1, 2]], [[2, 0], [0, 0]]])
    meter = Segmentation(ignore=9).meter(spec(4))
    found = evaluate(meter, nn.functional.one_hot(taken, 4).permute(0, 3, 1, 2).float(), target, size=1)
    # whole split: class 0 is hit 2 times of 5, class 1 1 of 3, class 2 1 of 2
    assert found["mIoU"] == pytest.approx(100 * (2 / 5 + 1 / 3 + 1 / 2) / 3)
    assert found["pixel_accuracy"] == pytest.approx(100 * 4 / 7)
    # first image: class 0 1 of 2, class 1 1 of 2; second: class 0 1 of 3, class 1 0 of 1, class 2 1 of 2
    assert meter.examples().tolist() == pytest.approx([50.0, 100 * (1 / 3 + 0 + 1 / 2) / 3])


def test_segmentation_against_scikit_learn_and_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(3)
    k, ignore = 6, 255
    target = torch.randint(k - 1, (20, 9, 11), generator=draw)  # the last class is in no target
    scores = torch.randn(20, k, 9, 11, generator=draw) + 2 * nn.functional.one_hot(target, k).permute(0, 3, 1, 2)
    target[torch.rand(target.shape, generator=draw) < 0.2] = ignore
    target[4] = ignore
    meter = Segmentation().meter(spec(k))
    found = evaluate(meter, scores, target.to(torch.uint8))

    taken = scores.argmax(1)
    valid = target != ignore
    each = jaccard_score(target[valid], taken[valid], labels=range(k), average=None)
    assert found["mIoU"] == pytest.approx(100 * np.mean(each), rel=1e-6)
    reference = MulticlassJaccardIndex(k, ignore_index=ignore)
    assert found["mIoU"] == pytest.approx(100 * reference(taken, target).item(), rel=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(100 * (target == taken)[valid].float().mean().item(), rel=1e-6)

    images = []
    for i in (i for i in range(20) if valid[i].any()):
        t, p = target[i][valid[i]].numpy(), taken[i][valid[i]].numpy()
        images.append(100 * jaccard_score(t, p, labels=np.union1d(t, p), average="macro"))
    assert meter.examples().tolist() == pytest.approx(images, rel=1e-5)
    assert len(images) == 19


def test_segmentation_loss_is_the_mean_over_labelled_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 5, 6, generator=draw, requires_grad=True)
    y = torch.randint(5, (3, 5, 6), generator=draw).to(torch.uint8)  # 4 is unlabelled
    y[1] = 4
    logs = log_softmax(z.detach().double().numpy(), 1)
    expected = [-logs[b, y[b, i, j], i, j] for b, i, j in np.ndindex(3, 5, 6) if y[b, i, j] != 4]
    loss = Segmentation(ignore=4).loss(z, y)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-6)
    none = Segmentation(ignore=4).loss(z, torch.full_like(y, 4))
    none.backward()
    assert none.item() == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_smaller_scores_are_resized_bilinearly() -> None:
    # twice as many columns: pixel centres lie a quarter of a pixel off, so neighbours are weighed 3 to 1
    a = torch.tensor([[2.0, -1.0, 4.0]])
    row = torch.stack([a, torch.zeros_like(a)])[None]
    wide = torch.tensor([2.0, 1.25, -0.25, 0.25, 2.75, 4.0])
    y = torch.tensor([[[0, 1, 1, 0, 0, 1]]])
    expected = nn.functional.softplus(torch.where(y[0, 0] == 0, -wide, wide)).mean()
    assert Segmentation().loss(row, y).item() == pytest.approx(expected.item(), rel=1e-6)
    # taken for class 0 where the interpolated score is positive: wrong in the second and the last column
    assert evaluate(Segmentation().meter(spec(2)), row, y)["pixel_accuracy"] == pytest.approx(100 * 4 / 6)


# ---- depth -----------------------------------------------------------------------------------------------------------


def test_depth_against_numpy() -> None:
    draw = torch.Generator().manual_seed(0)
    d = (torch.rand(12, 6, 8, generator=draw) * 4).clamp(min=0.5)
    p = d[:, None] * (1 + 0.5 * torch.randn(12, 1, 6, 8, generator=draw))  # some behind the camera
    d[torch.rand(d.shape, generator=draw) < 0.3] = 0
    d[5] = 0
    meter = Depth().meter(spec(1))
    found = evaluate(meter, p, d)
    rows = []
    for i in (i for i in range(12) if i != 5):
        valid = d[i].numpy() > 0
        t, e = d[i].double().numpy()[valid], np.maximum(p[i, 0].double().numpy()[valid], 1e-3)
        close = np.maximum(e / t, t / e) < 1.25
        rows.append((np.mean(abs(e - t) / t), np.sqrt(np.mean((e - t) ** 2)), 100 * np.mean(close)))
    expected = dict(zip(("AbsRel", "RMSE", "delta1"), np.mean(rows, 0), strict=True))
    assert found == pytest.approx(expected, rel=1e-5)
    assert meter.examples().tolist() == pytest.approx([row[0] for row in rows], rel=1e-5)


def test_a_network_that_broke_down_is_not_measured_by_the_rest_of_its_images() -> None:
    p, d = torch.ones(3, 1, 2, 2), torch.ones(3, 2, 2)
    p[1] = torch.nan
    found = evaluate(Depth().meter(spec(1)), p, d)
    assert np.isnan(found["AbsRel"])


def test_berhu_by_hand() -> None:
    # errors 0, 1, 5 and one that has no target; c = 1: 0, 1, (25 + 1) / 2
    d, p = torch.tensor([[[2.0, 2.0, 2.0, 0.0]]]), torch.tensor([[[[2.0, 1.0, 7.0, 99.0]]]], requires_grad=True)
    loss = Depth().loss(p, d)
    assert loss.item() == pytest.approx(14 / 3)
    loss.backward()
    assert p.grad is not None
    # -1 below c, e / c above: a third of each
    assert p.grad.flatten().tolist() == pytest.approx([0, -1 / 3, 5 / 3, 0])
    assert Depth().loss(p, d[None]).item() == loss.item()  # a teacher's output (B, 1, H, W) as target
    assert Depth().loss(p, torch.zeros_like(d)).item() == 0
    same = torch.ones(2, 3)
    assert berhu(same, same, same > 0).item() == 0


# ---- class-incremental -----------------------------------------------------------------------------------------------

ENDS = (3, 5, 10)


def course(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of three evaluations of 10 classes, better and worse by turns."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (300,), generator=draw)
    right = nn.functional.one_hot(y, 10).float()
    return [(torch.randn(300, 10, generator=draw) + strength * right, y) for strength in (3.0, 1.0, 2.0)]


def expected_course(evaluations: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    tops, shares = [], np.zeros((3, 3))
    for k, (z, y) in enumerate(evaluations):
        seen = ENDS[k]
        hit = [(int(label), int(z[i, :seen].argmax()) == label) for i, label in enumerate(y) if label < seen]
        tops.append(np.mean([right for _, right in hit]))
        for j in range(k + 1):
            lower, upper = (0, *ENDS)[j], ENDS[j]
            shares[k, j] = np.mean([right for label, right in hit if lower <= label < upper])
    k = len(evaluations) - 1
    lost = [max(shares[row, j] for row in range(j, k)) - shares[k, j] for j in range(k)]
    return {
        "average": 100 * float(np.mean(tops)),
        "top1": 100 * float(tops[-1]),
        "forgetting": 100 * float(np.mean(lost)) if lost else 0.0,
    }


def test_class_incremental_against_loops() -> None:
    meter = ClassIncremental().meter(spec(10, experiences=ENDS))
    evaluations = course(0)
    for k, (z, y) in enumerate(evaluations):
        meter.experience = k
        for other in course(1)[::-1]:  # earlier evaluations of the same experience leave no trace
            evaluate(meter, *other)
        assert evaluate(meter, z, y) == pytest.approx(expected_course(evaluations[: k + 1]), rel=1e-5)
        asked = y < ENDS[k]
        assert (meter.examples() == (z[:, : ENDS[k]].argmax(1) == y)[asked]).all()
    assert expected_course(evaluations)["forgetting"] > 1  # something was forgotten


def test_task_incremental_chooses_among_the_classes_that_came_together() -> None:
    """Whoever is told so: told of three parts, as the mean over samples of three problems of their own."""
    meter = task_of("class-incremental", {"told": True}).meter(spec(10, experiences=ENDS))
    z, y = course(0)[2]
    for k in range(3):
        meter.experience = k
        found = evaluate(meter, z, y)
        bounds = list(pairwise((0, *ENDS)))[: k + 1]
        right = [z[i, a:b].argmax() + a == y[i] for a, b in bounds for i in range(300) if a <= y[i] < b]
        assert found["top1"] == pytest.approx(100 * float(np.mean(right)), rel=1e-5)
        assert len(meter.examples()) == len(right)
    assert found["forgetting"] == pytest.approx(0, abs=1e-5)  # the same scores three times


def test_class_incremental_goes_on_from_a_checkpoint() -> None:
    evaluations = course(0)
    meter = ClassIncremental().meter(spec(10, experiences=ENDS))
    for k in range(2):
        meter.experience = k
        with torch.inference_mode():
            evaluate(meter, *evaluations[k])
    state = copy.deepcopy(meter.state_dict())
    later = ClassIncremental().meter(spec(10, experiences=ENDS))
    later.load_state_dict(state)
    later.experience = 1  # killed after the evaluation: made again
    assert evaluate(later, *evaluations[1]) == pytest.approx(expected_course(evaluations[:2]), rel=1e-5)
    later.experience = 2
    assert evaluate(later, *evaluations[2]) == pytest.approx(expected_course(evaluations), rel=1e-5)


def test_class_incremental_with_whole_data_is_accuracy() -> None:
    z, y = course(0)[0]
    meter = ClassIncremental().meter(spec(10))
    top1 = evaluate(Classification().meter(spec(10)), z, y)["top1"]
    assert evaluate(meter, z, y) == pytest.approx({"average": top1, "top1": top1, "forgetting": 0.0})


def test_domain_incremental_against_loops() -> None:
    """Two domains of 120 and 180 samples in turn, in batches that know nothing of the border."""
    z, y = course(0)[0]
    other = z.flip(1)
    meter = DomainIncremental().meter(spec(10, experiences=(10, 10), arrivals={"test": (120, 180), "val": (0, 300)}))
    first = evaluate(meter, z, y)
    right, later = z.argmax(1) == y, other.argmax(1) == y
    of_first = 100 * right[:120].float().mean().item()
    assert first == pytest.approx({"average": of_first, "top1": of_first, "forgetting": 0.0}, rel=1e-5)
    assert torch.equal(meter.examples(), right[:120])
    meter.experience = 1
    second = evaluate(meter, other, y)
    top1 = 100 * later.float().mean().item()
    assert second["top1"] == pytest.approx(top1, rel=1e-5)
    assert second["average"] == pytest.approx((of_first + top1) / 2, rel=1e-5)
    assert second["forgetting"] == pytest.approx(of_first - 100 * later[:120].float().mean().item(), rel=1e-5)
    meter.split = "val"  # all of the second domain
    assert evaluate(meter, other, y)["top1"] == pytest.approx(top1, rel=1e-5)


# ---- episodes --------------------------------------------------------------------------------------------------------


def test_episodes_against_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    way, shot, query, episodes = 3, 2, 4, 25
    y = torch.repeat_interleave(torch.tensor([7, 3, 12, 40, 5]), torch.tensor([6, 9, 30, 7, 14]))
    y = y[torch.randperm(len(y), generator=draw)]
    x = torch.randn(len(y), 8, generator=draw) + torch.randn(50, 8, generator=draw)[y]
    meter = Episodes(way, shot, query, episodes).meter(spec())
    found = evaluate(meter, x, y)

    labels, features = y.numpy(), x.numpy()
    classes, scores = np.unique(labels), []
    for episode in range(episodes):

        def bits(stream: int, n: int, number: int = episode) -> NDArray[Any]:
            return random_bits(0, 0, stream, number * n + torch.arange(n)).numpy()

        chosen = classes[np.argsort(bits(0, len(classes)))[:way]]
        rank = bits(1, len(labels))
        members = [sorted(np.flatnonzero(labels == c), key=rank.__getitem__)[: shot + query] for c in chosen]
        centroids = np.stack([features[m[:shot]].mean(0) for m in members])
        taken = [cosine_similarity(features[m[shot:]], centroids).argmax(1) for m in members]
        scores.append(100 * np.mean([taken[i] == i for i in range(way)]))
    assert meter.examples().tolist() == pytest.approx(scores, rel=1e-5)
    assert 40 < np.mean(scores) < 95  # neither trivial nor hopeless
    assert found["accuracy"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert found["ci95"] == pytest.approx(1.96 * np.std(scores, ddof=1) / np.sqrt(episodes), rel=1e-4)


def test_episodes_of_noise_and_of_what_is_plain() -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(20).repeat_interleave(30)
    noise = evaluate(Episodes().meter(spec()), torch.randn(600, 64, generator=draw), y)
    assert abs(noise["accuracy"] - 20) < 3 * noise["ci95"]
    assert noise["ci95"] < 1
    # directions tell the classes apart, lengths do not matter
    length = torch.rand(600, 1, generator=draw) * 1000 + 0.1
    assert evaluate(Episodes().meter(spec()), torch.eye(20)[y] * length, y)["accuracy"] == 100


def test_too_few_samples_for_an_episode() -> None:
    x, y = torch.randn(50, 3), torch.arange(10).repeat_interleave(5)
    with pytest.raises(UserError, match=r"takes 5 classes of 16 samples each, but .* 10 classes of at least 5"):
        evaluate(Episodes().meter(spec()), x, y)
    with pytest.raises(UserError, match="takes 11 classes of 3 samples each"):
        evaluate(Episodes(way=11, query=2).meter(spec()), x, y)


# ---- robust ----------------------------------------------------------------------------------------------------------


def linear(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network for two classes, and images of which no pixel is near the end of its range."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(100, 156, (200, 2, 3, 3), generator=draw, dtype=torch.uint8)
    x = normalise(pixels, *map(torch.tensor, (MEAN, STD)))
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return net, x, torch.randint(2, (200,), generator=draw)


@pytest.mark.parametrize("eps", [0.0, 4.0, 16.0])
def test_attack_on_a_linear_network_is_the_worst_there_is(eps: float) -> None:
    net, x, y = linear(0)
    weight, bias = (parameter.detach() for parameter in net[1].parameters())  # type: ignore[index]
    slope = (weight[0] - weight[1]).view(2, 9)
    sign = 1 - 2 * y
    margin = sign * (x.flatten(1) @ (weight[0] - weight[1]) + bias[0] - bias[1])
    # a change of at most eps / 255 of each pixel moves the margin by at most the sum of |slope| / std
    worst = margin - eps / 255 * (slope.abs().sum(1) / torch.tensor(STD)).sum()
    meter = Robust(eps=eps).meter(spec(2, mean=MEAN, std=STD))
    found = evaluate(meter, x, y, net)
    assert (worst.abs() > 1e-4).all()  # rounding decides nothing
    assert (meter.examples() == (worst > 0)).all()
    assert found["robust"] == pytest.approx(100 * (worst > 0).float().mean().item())
    assert found["top1"] == pytest.approx(100 * (margin > 0).float().mean().item())
    if eps:
        assert found["robust"] < found["top1"]


def test_attack_stays_in_its_ball_and_in_the_range_of_pixels() -> None:
    net, _, y = linear(1)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (200, 2, 3, 3), generator=draw, dtype=torch.uint8)
    pixels[:, :, 0] = 0
    pixels[:, :, 1] = 255
    mean, std = map(torch.tensor, (MEAN, STD))
    batch = next(batches(normalise(pixels, mean, std), y, 200))

    def attacked(**settings: Any) -> Tensor:
        found = PGD(**{"eps": 8.0, "step": 2.0, "steps": 5, "mean": MEAN, "std": STD, **settings})(net, batch)
        assert not found.requires_grad
        return 255 * (found * std[:, None, None] + mean[:, None, None])

    for steps in (0, 5, 20):
        after = attacked(steps=steps)
        assert (after - pixels).abs().max() <= 8 + 1e-3
        assert after.min() >= -1e-3
        assert after.max() <= 255 + 1e-3
    # the start is uniform over the ball: mean 0 and variance 8² / 3, where nothing is clipped
    start = (attacked(steps=0) - pixels)[:, :, 2][(pixels[:, :, 2] > 8) & (pixels[:, :, 2] < 247)]
    assert abs(start.mean()) < 4 * 8 / 3**0.5 / len(start) ** 0.5
    assert start.var().item() == pytest.approx(64 / 3, rel=0.15)
    assert (attacked() == attacked()).all()
    assert len(start.round(decimals=4).unique()) > 0.95 * len(start)


def test_attack_needs_to_know_the_pixels() -> None:
    with pytest.raises(UserError, match="made-up has no mean and std"):
        Robust().meter(spec())
