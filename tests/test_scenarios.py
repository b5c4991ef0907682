"""Scenarios: what each makes of a data set, its arithmetic, its identity, and what is said of bad settings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from conftest import Kdbench
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image
from pydantic import Field
from scipy import stats

from kdbench import paths
from kdbench.data.arrays import load
from kdbench.data.datasets import Dataset, DatasetConfig, differing
from kdbench.data.module import ArrayData
from kdbench.data.pixels import degraded, fitted, noise
from kdbench.errors import UserError

OURS = "kdbench.data.scenarios."


def posed(scenario: str | None, name: str = "digits", *, root: Path | None = None, **settings: Any) -> Dataset:
    """A data set in a scenario; settings with a capital letter are the data set's."""
    own = {key.lower(): value for key, value in settings.items() if key[0].isupper()}
    chosen = {key: value for key, value in settings.items() if not key[0].isupper()}
    config = {"_target_": OURS + scenario, **chosen} if scenario else None
    return DatasetConfig.of({"name": name, "root": root and str(root), **own, "scenario": config}).build()


@pytest.fixture(scope="module")
def plain() -> Dataset:
    return posed(None)


def consistent(data: Dataset) -> bool:
    """Whether the specification tells what the data are."""
    spec, (height, width, channels) = data.spec, data.train.images.shape[1:]
    sizes = (len(data.train), len(data.val) if data.val else 0, len(data.test))
    return (
        spec.shape == (channels, height, width)
        and (spec.n_train, spec.n_val, spec.n_test) == sizes
        and spec.num_classes == len(data.classes)
        and (spec.mean, spec.std) == (data.mean, data.std)
        and spec.streams == ("again", *data.beside)
        and spec.beside == {name: len(stream.split) for name, stream in data.beside.items() if not stream.follow}
    )


# --- noisy labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
def test_a_known_share_of_the_labels_of_each_class_is_wrong(plain: Dataset, noise: str) -> None:
    data = posed("NoisyLabels", rate=0.4, clean=0.1, noise=noise)
    true, given = plain.train.labels, data.train.labels
    assert torch.equal(data.train.images, plain.train.images)
    for label in range(10):
        n = int((true == label).sum())
        known = round(n * 0.1)
        wrong = (given != true)[true == label]
        assert not wrong[:known].any()  # the first of a class in canonical order were looked through
        assert int(wrong.sum()) == round((n - known) * 0.4)
        if noise == "pair":
            assert set(given[(true == label) & (given != true)].tolist()) == {(label + 1) % 10}
    if noise == "symmetric":
        steps = ((given - true) % 10)[given != true]
        assert stats.chisquare(torch.bincount(steps, minlength=10)[1:].numpy()).pvalue > 1e-3
    assert torch.equal(data.test.labels, plain.test.labels)
    assert consistent(data)
    assert data.content_hash == plain.content_hash


def test_parts_of_noisy_labels_are_parts_of_the_whole(plain: Dataset) -> None:
    parts = {part: posed("NoisyLabels", part=part, Val=100) for part in ("all", "clean", "noisy")}
    clean, noisy = (parts[part].train for part in ("clean", "noisy"))
    assert len(clean) + len(noisy) == len(parts["all"].train) == 1197
    true = posed(None, Val=100).train
    known = {image.numpy().tobytes(): int(label) for image, label in zip(true.images, true.labels, strict=True)}
    assert all(known[image.numpy().tobytes()] == label for image, label in zip(clean.images, clean.labels, strict=True))
    pairs = [
        {(i.numpy().tobytes(), int(k)) for i, k in zip(part.images, part.labels, strict=True)}
        for part in (clean, noisy)
    ]
    whole = {
        (i.numpy().tobytes(), int(k)) for i, k in zip(parts["all"].train.images, parts["all"].train.labels, strict=True)
    }
    assert pairs[0] | pairs[1] == whole
    assert parts["clean"].val is not None
    assert consistent(parts["clean"])
    assert torch.equal(posed("NoisyLabels", rate=0).train.labels, plain.train.labels)
    with pytest.raises(UserError, match=r"part=clean leaves none of the 1297 .*clean=0.0"):
        posed("NoisyLabels", clean=0.0, part="clean")


# --- semi-supervised --------------------------------------------------------------------------------------------------


def test_few_labels_of_each_class_and_the_rest_without(plain: Dataset) -> None:
    data = posed("SemiSupervised", labelled=43, per_batch=9, laps=4)
    counts = torch.bincount(data.train.labels).tolist()
    assert sorted(counts) == [4] * 7 + [5] * 3
    first = [(plain.train.labels == k).nonzero()[:n, 0] for k, n in enumerate(counts)]
    chosen = torch.cat(first).sort().values
    assert torch.equal(data.train.images, plain.train.images[chosen])
    stream = data.beside["unlabelled"]
    assert torch.equal(stream.split.images, plain.train.images[~torch.isin(torch.arange(1297), chosen)])
    assert stream.split.labels.unique().tolist() == [-1]
    assert (stream.follow, stream.per_batch) == (False, 9)
    assert data.spec.per_epoch == (4 * 43,)
    assert data.spec.streams == ("again", "unlabelled")
    assert data.spec.beside == {"unlabelled": 1297 - 43}
    assert data.first(20).spec.beside == {"unlabelled": 20}
    assert consistent(data)
    more = {image.numpy().tobytes() for image in posed("SemiSupervised", labelled=80).train.images}
    assert {image.numpy().tobytes() for image in data.train.images} < more
    batches = list(ArrayData(data, 16, 0).train_dataloader())
    assert [len(batch) for batch in batches] == [16] * 10 + [12]
    assert {len(batch["unlabelled"]) for batch in batches} == {9}
    assert (data.mean, data.std) == (plain.mean, plain.std)


@pytest.mark.parametrize("labelled", [9, 1297, 5000])
def test_more_labels_than_there_are_or_fewer_than_classes(labelled: int) -> None:
    with pytest.raises(UserError, match=f"labelled={labelled}, but digits has 1297 training images in 10 classes"):
        posed("SemiSupervised", labelled=labelled)


# --- class-incremental ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({"tasks": 5}, (2, 4, 6, 8, 10)),
        ({"tasks": 2}, (5, 10)),
        ({"tasks": 10}, tuple(range(1, 11))),
        ({"tasks": 6, "first": 5}, (5, 6, 7, 8, 9, 10)),  # LUCIR: half of them, then 5 times as many
        ({"tasks": 3, "first": 2}, (2, 6, 10)),
        ({"tasks": 3, "first": 8}, (8, 9, 10)),
    ],
)
def test_classes_arrive_in_equal_parts(settings: dict[str, Any], ends: tuple[int, ...]) -> None:
    data = posed("ClassIncremental", **settings, memory=50)
    assert data.spec.experiences == ends
    assert data.spec.memory == 50
    assert data.spec.task == "class-incremental"
    for start, end, positions in zip((0, *ends), ends, data.experiences, strict=False):
        assert data.train.labels[positions].unique().tolist() == list(range(start, end))
        assert torch.equal(positions, positions.sort().values)
    assert torch.equal(torch.cat(data.experiences).sort().values, torch.arange(1297))
    assert data.spec.per_epoch == tuple(map(len, data.experiences))
    assert consistent(data)


def test_a_network_may_be_told_of_the_task() -> None:
    assert posed("ClassIncremental", tasks=5, told=True).spec.settings == {"told": True}
    assert posed("ClassIncremental", tasks=5).spec.settings == {}
    asked = {"_target_": "kdbench.data.scenarios.ClassIncremental", "tasks": 5, "first": None, "memory": 2000}
    for more in ({}, {"told": False}):
        assert DatasetConfig.of({"name": "digits", "scenario": {**asked, **more}}).identity()["scenario"] == asked


def test_classes_may_arrive_in_the_order_of_a_seed(plain: Dataset) -> None:
    order = np.random.RandomState(1993).permutation(100)
    assert order[:5].tolist() == [68, 56, 78, 8, 23]  # iCaRL's of CIFAR-100
    data = posed("ClassIncremental", tasks=5, seed=1993)
    order = np.random.RandomState(1993).permutation(10)
    assert data.classes == tuple(map(str, order))
    for mine, theirs in ((data.train, plain.train), (data.test, plain.test)):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(torch.from_numpy(order)[mine.labels], theirs.labels)
    assert consistent(data)
    with pytest.raises(UserError, match=r"scenario.seed=run has each run draw its own data, and here is no run"):
        posed("ClassIncremental", tasks=5, seed="run")


@pytest.mark.parametrize("settings", [{"tasks": 3}, {"tasks": 11}, {"tasks": 3, "first": 3}, {"tasks": 2, "first": 10}])
def test_classes_that_cannot_be_divided(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"tasks={settings['tasks']}.* cannot divide the 10 classes of digits"):
        posed("ClassIncremental", **settings)


# --- domain-incremental -----------------------------------------------------------------------------------------------


def test_domains_of_classes(plain: Dataset) -> None:
    data = posed("DomainIncremental", tasks=5, Val=100)
    assert data.classes == ("0/2/4/6/8", "1/3/5/7/9")
    assert data.spec.task == "domain-incremental"
    assert data.spec.experiences == (2,) * 5
    assert data.spec.arrivals == data.arrivals
    assert set(data.arrivals) == {"test", "val"}
    assert consistent(data)
    known = {image.numpy().tobytes(): int(y) for image, y in zip(plain.test.images, plain.test.labels, strict=True)}
    digits = torch.tensor([known[image.numpy().tobytes()] for image in data.test.images])
    assert torch.equal(digits % 2, data.test.labels)
    assert torch.equal(digits // 2, torch.arange(5).repeat_interleave(torch.tensor(data.arrivals["test"])))
    learnt = {image.numpy().tobytes(): int(y) for image, y in zip(plain.train.images, plain.train.labels, strict=True)}
    for k, part in enumerate(data.experiences):
        seen = [learnt[image.numpy().tobytes()] for image in data.train[part].images]
        assert {digit // 2 for digit in seen} == {k}
        assert [digit % 2 for digit in seen] == data.train.labels[part].tolist()
    other = posed("DomainIncremental", tasks=5, seed=0)
    order = np.random.RandomState(0).permutation(10)
    assert other.classes == ("/".join(map(str, order[::2])), "/".join(map(str, order[1::2])))


def test_domains_of_pixels(plain: Dataset) -> None:
    data = posed("DomainIncremental", tasks=3, domains="pixels", memory=7)
    assert (data.classes, data.spec.experiences, data.spec.memory) == (plain.classes, (10,) * 3, 7)
    assert data.arrivals == {"test": (len(plain.test),) * 3}
    assert consistent(data)
    for mine, theirs in ((data.train, plain.train), (data.test, plain.test)):
        n = len(theirs)
        assert torch.equal(mine.labels, theirs.labels.repeat(3))
        domains = mine.images.view(3, n, -1)
        assert torch.equal(domains[0], theirs.images.view(n, -1))
        for domain in domains[1:]:
            assert not torch.equal(domain, domains[0])
            assert torch.equal(domain.sort(1).values, domains[0].sort(1).values)
        varying = domains[:, :, :].float().var(1)
        assert torch.equal(varying[1].sort().values, varying[0].sort().values)  # each pixel goes to one place
    assert not torch.equal(data.test.images, posed("DomainIncremental", tasks=3, domains="pixels", seed=1).test.images)


def test_a_short_trial_has_every_domain() -> None:
    for domains in ("classes", "pixels"):
        data = posed("DomainIncremental", tasks=5, domains=domains).first(50)
        assert [len(part) for part in data.experiences] == [10] * 5
        assert data.spec.arrivals == {"test": (10,) * 5}
        assert len(data.test) == 50
        assert consistent(data)


def test_domains_that_cannot_be_had() -> None:
    for tasks in (3, 10):
        with pytest.raises(UserError, match=rf"tasks={tasks} cannot divide the 10 classes of digits into equal parts"):
            posed("DomainIncremental", tasks=tasks)
    with pytest.raises(UserError, match=r"cannot be moved or mirrored: set dataset.pad=0"):
        posed("DomainIncremental", tasks=2, domains="pixels", Pad=1)


def test_the_order_of_arrival_is_that_of_the_classes() -> None:
    data = posed("ClassIncremental", tasks=2, Classes=[7, 3, 1, 0])
    assert data.classes == ("7", "3", "1", "0")
    known = posed(None, Classes=[7, 3])
    first = data.train[data.experiences[0]]
    assert torch.equal(first.images, known.train.images)
    assert torch.equal(first.labels, known.train.labels)


def test_a_short_trial_has_every_experience_and_stream() -> None:
    many = posed("ClassIncremental", tasks=2, first=8).first(20)
    assert len(many.train.labels[many.experiences[0]].unique()) == 8  # a class without samples has no mean
    data = posed("ClassIncremental", tasks=5).first(50)
    assert [len(part) for part in data.experiences] == [10] * 5
    assert data.spec.experiences == (2, 4, 6, 8, 10)
    assert consistent(data)
    assert len(posed("SemiSupervised", labelled=100).first(30).beside["unlabelled"].split) == 30
    pair = posed("Paired", degrade="noise", amount=8.0).first(30)
    assert torch.equal(pair.beside["paired"].split.images, pair.for_teacher.train.images)
    assert len(pair.train) == 30
    few = posed("FewShot", base=5)
    assert len(few.first(20).test) == len(few.test)


# --- few-shot ---------------------------------------------------------------------------------------------------------


def test_new_classes_are_told_apart(plain: Dataset) -> None:
    data = posed("FewShot", base=4, way=5, shot=1, query=15, episodes=7, Classes=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert data.classes == ("9", "8", "7", "6")
    assert data.spec.task == "few-shot"
    assert data.spec.settings == {"way": 5, "shot": 1, "query": 15, "episodes": 7}
    assert consistent(data)
    both = torch.cat([plain.train.images, plain.test.images]), torch.cat([plain.train.labels, plain.test.labels])
    assert len(data.test) == int((both[1] < 6).sum())
    for label, digit in enumerate((5, 4, 3, 2, 1, 0)):
        ours = {image.numpy().tobytes() for image in data.test.images[data.test.labels == label]}
        assert ours == {image.numpy().tobytes() for image in both[0][both[1] == digit]}
    for label, digit in enumerate((9, 8, 7, 6)):
        assert int((data.train.labels == label).sum()) == int((plain.train.labels == digit).sum())


def test_data_whose_splits_have_other_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "letters"
    folder.mkdir()
    for split, labels in (("train", [0, 2]), ("test", [1, 3])):
        np.save(folder / f"{split}_images.npy", rng.integers(0, 256, (40, 6, 6, 1), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.repeat(np.array(labels, dtype=np.int64), 20))
    (folder / "meta.json").write_text(json.dumps({"classes": ["a", "b", "c", "d"], "source": "random"}))
    data = posed("FewShot", "letters", root=tmp_path, way=2)
    assert data.classes == ("a", "c")
    assert data.train.labels.unique().tolist() == [0, 1]
    assert torch.bincount(data.test.labels).tolist() == [20, 20]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"base": 6}, "way=5 classes needs as many new ones, and of the 10 of digits 4 are new"),
        ({}, "0 are new"),
        ({"base": 5, "shot": 170, "query": 15}, "an episode needs 170 \\+ 15 images .* has 174"),
        ({"base": 5, "Val": 20}, "leave dataset.val at 0"),
    ],
)
def test_too_little_for_an_episode(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        posed("FewShot", **settings)


# --- robust -----------------------------------------------------------------------------------------------------------


def test_robust_changes_only_the_judge(plain: Dataset) -> None:
    data = posed("Robust", eps=4.0)
    assert torch.equal(data.train.images, plain.train.images)
    assert (data.spec.task, data.spec.settings) == ("robust", {"eps": 4.0, "steps": 20, "step": 2.0})
    assert data.spec == replace(plain.spec, task="robust", settings=data.spec.settings)


# --- paired modalities ------------------------------------------------------------------------------------------------


def test_grey_is_the_luma_of_pillow() -> None:
    images = torch.randint(0, 256, (5, 6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = degraded(images, "grey", 0)
    assert grey.shape == (5, 6, 8, 1)
    for image, luma in zip(images, grey, strict=True):
        reference = np.asarray(Image.fromarray(image.numpy()).convert("L")).astype(int)
        assert np.abs(luma[..., 0].numpy().astype(int) - reference).max() <= 1


def test_lightness_and_colour_are_those_of_l_a_b() -> None:
    """By the primaries of sRGB, adapted to D50 (B. Lindbloom's calculator)."""
    primaries = {(255, 0, 0): (54.29, 80.81, 69.89), (0, 255, 0): (87.82, -79.27, 80.99)}
    primaries |= {(0, 0, 255): (29.57, 68.30, -112.03), (255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0)}
    images = torch.tensor(list(primaries), dtype=torch.uint8)[:, None, None].expand(-1, 2, 3, -1)
    lightness, colour = degraded(images, "lightness", 0), degraded(images, "colour", 0)
    assert (lightness.shape, colour.shape) == ((5, 2, 3, 1), (5, 2, 3, 2))
    for (level, a, b), light, ab in zip(primaries.values(), lightness, colour, strict=True):
        assert (light.float() * 100 / 255 - level).abs().max() < 0.4
        assert (ab.float() - 128 - torch.tensor([a, b])).abs().max() <= 1


def test_teachers_may_see_another_part_than_students() -> None:
    whole = posed(None, "shapes_boxes")
    data = posed("Paired", "shapes_boxes", degrade="colour", teachers="lightness")
    teacher = data.for_teacher
    assert torch.equal(data.train.images, degraded(whole.train.images, "colour", 0))
    assert torch.equal(teacher.train.images, degraded(whole.train.images, "lightness", 0))
    assert (data.spec.shape[0], data.spec.shape_for_teacher) == (2, (1, *whole.spec.shape[1:]))
    of_lightness = posed("Paired", "shapes_boxes", degrade="lightness")
    assert (teacher.mean, teacher.std) == (of_lightness.mean, of_lightness.std)
    batch = next(iter(ArrayData(data, 32, 0).train_dataloader()))
    assert batch.for_teacher.x.shape[1] == 1
    assert consistent(data)


def test_coarse_pixels_have_the_mean_of_their_square() -> None:
    images = torch.randint(0, 256, (3, 4, 6, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    coarse = degraded(images, "coarse", 2).numpy()
    for i, y, x, c in np.ndindex(3, 2, 3, 2):
        square = images[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2, c].double().mean().item()
        assert np.unique(coarse[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2, c]).tolist() == [np.rint(square)]


def test_noise_is_gaussian_and_always_the_same() -> None:
    images = torch.full((1500, 8, 8, 1), 128, dtype=torch.uint8)
    noisy = degraded(images, "noise", 20.0)
    errors = noisy.double().flatten() - 128
    assert abs(errors.mean()) < 0.3
    assert abs(errors.std() - 20) < 0.3
    assert stats.kstest(errors.numpy() / 20, "norm").statistic < 0.02  # whole numbers: steps of 0.05
    assert torch.equal(noisy, degraded(images, "noise", 20.0))
    assert not torch.equal(noisy[0], noisy[1000])
    assert torch.equal(degraded(images[:1001], "noise", 20.0), noisy[:1001])


@pytest.mark.parametrize("settings", [{"degrade": "coarse", "amount": 2}, {"degrade": "noise", "amount": 30.0}])
def test_students_see_worse_images_than_teachers(plain: Dataset, settings: dict[str, Any]) -> None:
    data = posed("Paired", **settings, Val=97)
    whole = posed(None, Val=97)
    for split in ("train", "val", "test"):
        ours, theirs = getattr(data, split), getattr(whole, split)
        assert torch.equal(ours.images, degraded(theirs.images, settings["degrade"], settings["amount"]))
        assert torch.equal(ours.labels, theirs.labels)
    assert data.mean == pytest.approx([data.train.images.double().mean().item() / 255])
    assert data.std == pytest.approx([data.train.images.double().std(correction=0).item() / 255])
    assert data.content_hash == plain.content_hash
    assert consistent(data)
    teacher = data.for_teacher
    assert (teacher.mean, teacher.spec) == (whole.mean, whole.spec)
    batch = next(iter(ArrayData(data, 32, 0).train_dataloader()))
    expected = next(iter(ArrayData(whole, 32, 0).train_dataloader()))
    assert torch.equal(batch.for_teacher.x, expected.x)  # to the bit what the teacher of the whole world sees
    assert not torch.equal(batch.x, expected.x)


def test_teachers_see_the_image_of_another_data_set(plain: Dataset) -> None:
    data = posed("Paired", "digits_m", dataset="digits")
    alone = posed(None, "digits_m")
    assert torch.equal(data.train.images, alone.train.images)
    seen = data.for_teacher.train
    arrays = load("digits")
    for image, of_teacher, label in zip(data.train.images[:50], seen.images[:50], seen.labels[:50], strict=True):
        place = next(i for i, known in enumerate(load("digits_m").train_images) if np.array_equal(known, image.numpy()))
        assert np.array_equal(of_teacher.numpy(), arrays.train_images[place])
        assert int(label) == arrays.train_labels[place]
    assert (data.for_teacher.mean, data.for_teacher.std) == (plain.mean, plain.std)
    assert data.for_teacher.content_hash == plain.content_hash
    assert data.content_hash == sha256(f"{alone.content_hash} {plain.content_hash}\n".encode()).hexdigest()
    with pytest.raises(UserError, match="digits does not say which train image of digits_m"):
        posed("Paired", "digits", dataset="digits_m")


def written(root: Path, **more: np.ndarray) -> Path:
    """A data set of 3 classes, and other files beside its images."""
    rng = np.random.default_rng(1)
    folder = root / "toy"
    folder.mkdir()
    for split, n in (("train", 30), ("test", 12)):
        np.save(folder / f"{split}_images.npy", rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(n, dtype=np.int64) % 3)
    for name, array in more.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "meta.json").write_text(json.dumps({"classes": ["a", "b", "c"], "source": "random"}))
    return folder


def test_students_see_a_file_beside_the_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    depth = {
        f"{split}_depth": rng.integers(0, 4000, (n, 6, 5)).astype(np.uint16)
        for split, n in (("train", 30), ("test", 12))
    }
    depth["train_depth"][0, 0, 0] = 4000
    folder = written(tmp_path, **depth)
    data = posed("Paired", "toy", root=tmp_path, file="depth")
    assert data.spec.shape == (1, 6, 5)
    images = np.load(folder / "train_images.npy")
    for shown, image in zip(data.train.images, data.for_teacher.train.images, strict=True):
        place = next(i for i in range(30) if np.array_equal(images[i], image.numpy()))
        assert np.array_equal(shown[..., 0].numpy(), np.rint(depth["train_depth"][place] * (255 / 4000)))
    once = data.content_hash
    np.save(folder / "test_depth.npy", depth["test_depth"][::-1])
    assert posed("Paired", "toy", root=tmp_path, file="depth").content_hash != once
    np.save(folder / "train_depth.npy", depth["train_depth"][:5])
    with pytest.raises(UserError, match=r"train_depth.npy holds uint16 \(5, 6, 5\), not a map .* of the 30 samples"):
        posed("Paired", "toy", root=tmp_path, file="depth")
    with pytest.raises(UserError, match=r"train_lidar.npy cannot be read .*dataset.scenario.file"):
        posed("Paired", "toy", root=tmp_path, file="lidar")


def test_students_see_fewer_frames_of_a_clip(tmp_path: Path) -> None:
    folder = tmp_path / "moving"
    folder.mkdir()
    for split, n in (("train", 8), ("test", 6)):
        clips = np.zeros((n, 6, 4, 4, 3), dtype=np.uint8)  # frame t shows 10 t in red, the clip's number in green
        clips[..., 0] = 10 * np.arange(6)[:, None, None]
        clips[..., 1] = np.arange(n)[:, None, None, None]
        clips[:, :, 0, 0] = 1  # statistics need something that changes
        np.save(folder / f"{split}_clips.npy", clips)
        np.save(folder / f"{split}_labels.npy", np.arange(n, dtype=np.int64) % 2)
    (folder / "meta.json").write_text(json.dumps({"classes": ["left", "right"], "source": "made"}))
    data = posed("Paired", "moving", root=tmp_path, frames=3)
    assert data.spec.shape == (9, 4, 4)
    assert data.train.images[0, 0, 1].reshape(3, 3)[:, 0].tolist() == [10, 30, 50]
    assert data.for_teacher.spec.shape == (18, 4, 4)
    assert torch.equal(data.train.images[:, 2, 2, 1], data.for_teacher.train.images[:, 2, 2, 1])
    with pytest.raises(UserError, match="frames=6 of the 6 that moving shows"):
        posed("Paired", "moving", root=tmp_path, frames=6)
    with pytest.raises(UserError, match="frames=1 of the 1 that digits shows"):
        posed("Paired", frames=1)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({}, "pairs by nothing: set one of"),
        ({"degrade": "grey", "frames": 2}, "pairs by degrade and frames"),
        ({"frames": 2, "teachers": "grey"}, "teachers=grey with degrade=None"),
        ({"degrade": "grey", "teachers": "grey"}, "teachers=grey with degrade=grey"),
        ({"degrade": "noise"}, "amount=None with degrade=noise"),
        ({"degrade": "grey", "amount": 3.0}, "amount=3.0 with degrade=grey"),
        ({"degrade": "grey"}, "images of 1 channel have no colour to lose"),
        ({"degrade": "coarse", "amount": 3}, "8x8 cannot be divided into squares of 3 pixels"),
        ({"degrade": "blur", "amount": 3}, "dataset.scenario.degrade='blur'"),
    ],
)
def test_pairs_that_cannot_be(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        posed("Paired", **settings)


# --- another domain ---------------------------------------------------------------------------------------------------


def test_the_target_is_seen_without_labels_and_judges(plain: Dataset) -> None:
    data = posed("Target", dataset="digits_m", per_batch=20, Val=50)
    other = posed(None, "digits_m")
    assert len(data.train) == 1247
    assert torch.equal(data.test.images, other.test.images)
    assert torch.equal(data.test.labels, other.test.labels)
    stream = data.beside["unlabelled"]
    assert torch.equal(stream.split.images, other.train.images)
    assert stream.split.labels.unique().tolist() == [-1]
    assert data.content_hash == sha256(f"{plain.content_hash} {other.content_hash}\n".encode()).hexdigest()
    assert consistent(data)
    module = ArrayData(data, 50, 0)
    batch, held = next(iter(module.train_dataloader())), next(iter(module.test_dataloader()))
    assert len(batch["unlabelled"]) == 20
    # each domain by its own statistics
    for x, split, mean, std in (
        (held.x, other.test, other.mean, other.std),
        (batch.x, data.train, plain.mean, plain.std),
    ):
        index = torch.arange(len(x)) if x is held.x else batch.index
        expected = (split.images[index].permute(0, 3, 1, 2).double() / 255 - mean[0]) / std[0]
        assert torch.allclose(x.double(), expected, atol=1e-5)
    (val,) = module.val_dataloader()[1:]
    assert torch.allclose(next(iter(val)).x.mean(), batch.x.mean(), atol=0.1)


def test_domains_of_another_size_colour_and_order_of_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    folder = tmp_path / "wild"
    folder.mkdir()
    for split, n in (("train", 24), ("test", 12)):
        images = rng.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(n) % 4
        np.save(folder / f"{split}_images.npy", images)
        np.save(folder / f"{split}_labels.npy", np.arange(n, dtype=np.int64) % 4)
    (folder / "meta.json").write_text(json.dumps({"classes": ["1", "zebra", "0", "2"], "source": "random"}))
    data = posed("Target", root=tmp_path, dataset="wild", size=12, Classes=[0, 1, 2])
    assert data.spec.shape == (3, 12, 12)
    assert len(data.test) == 9
    theirs = {0: 2, 1: 0, 2: 3}  # our label -> that of the same name
    assert all(
        int(image[0, 0, 0]) == theirs[int(label)]
        for image, label in zip(data.test.images, data.test.labels, strict=True)
    )
    assert len(data.beside["unlabelled"].split) == 18
    grey = data.train.images
    assert torch.equal(grey[..., 0], grey[..., 1])
    assert torch.equal(grey[..., 0], grey[..., 2])
    assert data.mean == posed(None).mean * 3
    assert data.test.mean is not None
    assert len(data.test.mean) == 3
    assert consistent(data)
    with pytest.raises(UserError, match=r"the target wild has no class '3' \(it has 1, zebra, 0, 2\)"):
        posed("Target", root=tmp_path, dataset="wild")
    with pytest.raises(UserError, match="digits is the source itself"):
        posed("Target", dataset="digits")
    with pytest.raises(UserError, match=r"dataset.pad=8 moves images of 4x4 out of sight"):
        posed("Target", dataset="digits_m", size=4, Pad=8)
    with pytest.raises(UserError, match="the data set 'nowhere' is not in"):
        posed("Target", root=tmp_path, dataset="nowhere")


def test_fitted_keeps_constant_images_and_those_of_that_size() -> None:
    images = torch.randint(0, 256, (3, 5, 7, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fitted(images, (5, 7), 3), images.expand(-1, -1, -1, 3))
    flat = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 9, 9, 3) * 100
    assert torch.equal(fitted(flat, (16, 4), 3), flat[:, :1, :1].expand(3, 16, 4, 3))


# --- another transfer set ---------------------------------------------------------------------------------------------


def test_the_images_of_another_set_in_place_of_ones_own(plain: Dataset, tmp_path: Path) -> None:
    """40 coloured images of 12x12 for 60 grey ones of 8x8: each once, and 20 of them a second time."""
    rng, folder = np.random.default_rng(5), tmp_path / "other"
    folder.mkdir()
    for split, n in (("train", 40), ("test", 4)):
        flat = rng.integers(0, 256, (n, 1, 1, 3), dtype=np.uint8)  # of one colour, whatever their size
        np.save(folder / f"{split}_images.npy", flat.repeat(12, 1).repeat(12, 2))
        np.save(folder / f"{split}_labels.npy", np.arange(n, dtype=np.int64) % 2)
    (folder / "meta.json").write_text(json.dumps({"classes": ["a", "b"], "source": "random"}))
    data = posed("Transfer", root=tmp_path, dataset="other", Per_class=6, Val=50)
    assert data.train.images.shape == (60, 8, 8, 1)
    assert data.train.images.flatten(1).unique(dim=1).shape == (60, 1)
    assert torch.equal(data.train.images[40:], data.train.images[:20])
    colours = np.load(folder / "train_images.npy")[:, 0, 0]
    grey = (colours @ np.array([0.299, 0.587, 0.114])).round()  # ITU-R BT.601
    assert np.abs(np.sort(data.train.images[:40, 0, 0, 0].numpy()) - np.sort(grey)).max() <= 1
    assert data.train.labels.tolist() == [-1] * 60
    # what judges stays, and so do the statistics
    assert torch.equal(data.test.images, plain.test.images)
    assert torch.equal(data.test.labels, plain.test.labels)
    assert data.val is not None
    assert data.val.labels.unique().tolist() == [*range(10)]
    assert (data.mean, data.std) == (plain.mean, plain.std)
    other = load("other", str(tmp_path)).content_hash
    assert data.content_hash == sha256(f"{plain.content_hash} {other}\n".encode()).hexdigest()
    assert consistent(data)
    assert not data.spec.labelled
    assert not data.first(10).spec.labelled
    assert plain.spec.labelled
    digits_m = posed("Transfer", dataset="digits_m", Classes=4).train.images
    assert len({*digits_m.flatten(1).unbind()}) == len(digits_m)  # of a larger set, none twice
    with pytest.raises(UserError, match="digits is the data set itself"):
        posed("Transfer", dataset="digits")
    for settings, said in (({}, "neither"), ({"dataset": "digits_m", "noise": "uniform"}, "both")):
        with pytest.raises(UserError, match=f"says {said} of dataset and noise: set one"):
            posed("Transfer", **settings)


def test_noise_has_the_distribution_that_was_asked_for(plain: Dataset) -> None:
    uniform, gaussian = (posed("Transfer", noise=how) for how in ("uniform", "gaussian"))
    levels = uniform.train.images.flatten()
    counts = levels.long().bincount(minlength=256)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert len(uniform.train) == len(gaussian.train) == len(plain.train)
    mean, std = (255 * values[0] for values in (plain.mean, plain.std))
    values = gaussian.train.images.double().flatten().numpy()
    for level in (0, 50, 128, 254):  # what is cut off lies on black and white
        assert (values <= level).mean() == pytest.approx(stats.norm.cdf(level + 0.5, mean, std), abs=0.005)
    assert torch.equal(gaussian.train.images, posed("Transfer", noise="gaussian").train.images)
    assert uniform.content_hash != gaussian.content_hash != plain.content_hash
    assert torch.equal(noise((1001, 2, 2, 3), "uniform", (), ())[:7], noise((7, 2, 2, 3), "uniform", (), ()))
    coloured = noise((500, 4, 4, 2), "gaussian", (0.5, 0.25), (0.1, 0.01)).double()
    assert torch.allclose(coloured.mean((0, 1, 2)), torch.tensor([127.5, 63.75]).double(), atol=0.7)
    assert torch.allclose(coloured.std((0, 1, 2)), torch.tensor([25.5, 2.55]).double(), atol=0.5)


def test_some_classes_teach_and_all_judge(plain: Dataset) -> None:
    data = posed("SomeClasses", classes=[7, 3])
    assert sorted(data.train.labels.unique().tolist()) == [3, 7]
    assert len(data.train) == int(((plain.train.labels == 3) | (plain.train.labels == 7)).sum())
    assert torch.equal(data.test.labels, plain.test.labels)
    assert (data.classes, data.spec.num_classes) == (plain.classes, 10)
    assert consistent(data)
    for classes in ([], [10], [*range(10)]):
        with pytest.raises(UserError, match="does not choose some of the 10 classes of digits"):
            posed("SomeClasses", classes=classes)


# --- configuration and identity ---------------------------------------------------------------------------------------


def test_every_scenario_config_is_complete_and_documented() -> None:
    files = sorted((paths.conf_dir() / "scenario").glob("*.yaml"))
    assert len(files) >= 7
    for file in files:
        text = file.read_text()
        assert text.startswith("# @package dataset.scenario\n#"), file
        settings = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(settings, Mapping)
        added: Collection[str] = getattr(get_class(str(settings["_target_"])), "ADDED", ())
        kept = DatasetConfig.of({"name": "digits", "scenario": settings}).scenario
        assert kept == {key: value for key, value in settings.items() if key not in added}, file
        fields = inspect.signature(get_class(str(settings["_target_"]))).parameters
        assert [*settings] == ["_target_", *fields], file


@dataclass(frozen=True)
class EveryOther:
    """Every other training sample, of a user's own."""

    first: Annotated[int, Field(ge=0)] = 0
    how: Literal["train", "both"] = "train"
    later: float = 1.0
    ADDED: ClassVar[frozenset[str]] = frozenset({"later"})

    def __call__(self, data: Dataset) -> Dataset:
        if self.first == 3:
            raise KeyError("nothing\nto see")
        return data.posed(train=data.train[slice(self.first, None, 2)])


@dataclass(frozen=True)
class Fussy:
    size: int

    def __post_init__(self) -> None:
        if self.size != 1:
            raise ValueError("the size must be 1")

    def __call__(self, data: Dataset) -> Dataset:
        return data


def own(**settings: Any) -> DatasetConfig:
    return DatasetConfig.of({"name": "digits", "scenario": {"_target_": f"{__name__}.EveryOther", **settings}})


def test_a_scenario_of_the_users_own(plain: Dataset) -> None:
    data = own(first=1).build()
    assert torch.equal(data.train.images, plain.train.images[1::2])
    assert data.spec.n_train == 648
    assert consistent(data)


def test_a_scenario_is_identified_by_all_that_it_was_made_of() -> None:
    without = DatasetConfig.of({"name": "digits"}).model_dump(mode="json")
    assert "scenario" not in without
    assert DatasetConfig.of({"name": "digits", "scenario": None}).model_dump(mode="json") == without
    target = f"{__name__}.EveryOther"
    expected = {**without, "scenario": {"_target_": target, "first": 0, "how": "train"}}
    for config in (own(), own(first=0), own(how="train", later=1.0)):
        assert config.model_dump(mode="json") == expected  # `later` came later
    assert own(later=2.0).model_dump(mode="json")["scenario"]["later"] == 2.0
    again = DatasetConfig.of(own(first=1).model_dump(mode="json"))
    assert again == own(first=1)


@pytest.mark.parametrize(
    ("scenario", "what"),
    [
        ({"_target_": OURS + "Robust", "epz": 3}, r"unknown key 'dataset.scenario.epz' of Robust: did you mean eps\?"),
        ({"_target_": OURS + "Robust", "eps": -1.0}, r"dataset.scenario.eps=-1.0: input should be greater than 0\."),
        (
            {"_target_": OURS + "Robust", "steps": True},
            r"dataset.scenario.steps=True: input should be a valid integer\.",
        ),
        ({"_target_": OURS + "ClassIncremental", "tasks": 2, "memory": -1}, r"dataset.scenario.memory=-1: "),
        ({"_target_": OURS + "ClassIncremental"}, r"the config lacks 'dataset.scenario.tasks' of ClassIncremental"),
        ({"_target_": OURS + "ClassIncrmental"}, r"dataset.scenario: cannot import .*ClassIncrmental .*PYTHONPATH\.$"),
        ({"_target_": "nowhere"}, r"dataset.scenario: cannot import nowhere"),
        ({"_target_": OURS + "UNLABELLED"}, r"UNLABELLED is no class"),
        ({"tasks": 2}, r"dataset.scenario=\{'tasks': 2\} does not say which class it is: give it a _target_\."),
        (5, r"dataset.scenario=5 does not say which class"),
        (
            {"_target_": f"{__name__}.EveryOther", "first": 3},
            r"the scenario EveryOther cannot be had of digits .*KeyError",
        ),
        (
            {"_target_": f"{__name__}.Fussy", "size": 2},
            r"the scenario Fussy .*the size must be 1\); mend|size must be 1",
        ),
    ],
)
def test_bad_scenarios_are_told_in_one_sentence(scenario: Any, what: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        DatasetConfig.of({"name": "digits", "scenario": scenario}).build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        ("NoisyLabels", {}),
        ("SemiSupervised", {"labelled": 20}),
        ("ClassIncremental", {"tasks": 2}),
        ("DomainIncremental", {"tasks": 2}),
        ("FewShot", {"base": 2}),
        ("Robust", {}),
        ("Target", {"dataset": "digits"}),
        ("Transfer", {"noise": "uniform"}),
        ("SomeClasses", {"classes": [0]}),
    ],
)
def test_scenarios_of_classes_refuse_other_targets(scenario: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{scenario} asks for a class of each image, .*shapes_depth is depth"):
        posed(scenario, "shapes_depth", **settings)


def test_dense_data_can_be_paired() -> None:
    data = posed("Paired", "shapes_masks", degrade="grey")
    assert data.spec.shape[0] == 1
    assert data.for_teacher.spec.shape[0] == 3
    assert data.spec.task == "segmentation"


def test_differences_to_a_scenario() -> None:
    config = {"name": "digits", "scenario": {"_target_": "a.B", "part": "all", "rate": 0.4}}
    assert differing(config, {"scenario": {"part": "clean"}})["scenario"] == {
        "_target_": "a.B",
        "part": "clean",
        "rate": 0.4,
    }
    assert differing(config, {"scenario": {"_target_": "c.D"}})["scenario"] == {"_target_": "c.D"}
    assert differing(config, {"scenario": None})["scenario"] is None
    assert differing(config, {"per_class": 3})["scenario"] == config["scenario"]
    assert differing({"name": "digits"}, {"scenario": {"part": "clean"}})["scenario"] == {"part": "clean"}


# --- the command line -------------------------------------------------------------------------------------------------


def test_a_run_in_a_scenario_with_a_teacher_of_another(kd: Kdbench) -> None:
    result = kd.run(
        "method=[kd]", "scenario=noisy_labels", "dataset.scenario.rate=0.5", "teacher.dataset.scenario.part=clean"
    )
    assert result.code == 0, result.err
    (record,) = kd.records()
    scenario = record.config["dataset"]["scenario"]
    assert scenario == {
        "_target_": OURS + "NoisyLabels",
        "rate": 0.5,
        "clean": 0.1,
        "part": "all",
        "noise": "symmetric",
    }
    assert record.config["teacher"]["dataset"]["scenario"] == {**scenario, "part": "clean"}
    assert kd.run("method=[kd]", "scenario=noisy_labels", "teacher.dataset.scenario=null").code == 0
    (other,) = [each for each in kd.records() if each.cell.id != record.cell.id]
    assert "scenario" not in other.config["teacher"]["dataset"]
    plain = kd.run("method=[kd]")
    assert plain.code == 0, plain.err
    (third,) = [each for each in kd.records() if "scenario" not in each.config["dataset"]]
    assert third.teacher is not None
    assert other.teacher is not None
    assert third.teacher.sha256 == other.teacher.sha256  # the teacher of the plain world, whoever asks for it


def test_without_labels_only_those_train_who_need_none(kd: Kdbench) -> None:
    transfer = ("scenario=transfer", "teacher.dataset.scenario=null")
    result = kd.run("method=[scratch,kd,kd_unlabelled]", *transfer)
    assert result.code == 0, result.err
    for name in ("Scratch", "KD"):
        assert f"{name} needs 'labels', and the training images of digits have none here" in result.out
    (record,) = kd.records()
    assert record.cell.method == "kd_unlabelled"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["scenario=nosuch"], ["there is no scenario 'nosuch'", "class_incremental"]),
        (["scenario=robust", "dataset.scenario.epz=3"], ["dataset.scenario.epz", "dataset.scenario.eps"]),
        (["scenario=class_incremental", "dataset.scenario.tasks=3"], ["tasks=3 cannot divide the 10 classes"]),
        (["scenario=robust", "teacher.dataset.scenario.epz=3"], ["dataset.scenario.epz"]),
        (["teacher.dataset.scenario.part=clean"], ["does not say which class it is"]),
    ],
)
def test_what_is_wrong_with_a_scenario_is_told(kd: Kdbench, args: list[str], what: list[str]) -> None:
    result = kd.run("method=[kd]", *args)
    assert result.code != 0
    (line,) = result.err.splitlines()
    assert all(word in line for word in what), line
    assert kd.records() == []
