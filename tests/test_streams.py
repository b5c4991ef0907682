"""Streams beside a batch, laps, experiences and hidden labels: all pure functions of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from kdbench.data.batch import Batch, Beside
from kdbench.data.datasets import Dataset, DatasetConfig, Split, Stream
from kdbench.data.module import ArrayData
from kdbench.data.views import Views, apply_views, order_of, view_of
from kdbench.draws import random_bits
from kdbench.errors import UserError
from kdbench.tasks import task_of

PAD, SEED = 1, 5
KEYS = ("x", "y", "index", "view")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DatasetConfig(name="digits", pad=PAD, flip=True, per_class=10).build()


@pytest.fixture(scope="module")
def rich(digits: Dataset) -> Dataset:
    """100 digits, their negatives as a paired modality, and 60 more without labels."""
    negative = replace(digits.train, images=255 - digits.train.images, mean=(0.5,), std=(0.25,))
    more = Split(digits.test.images[:60], torch.full((60,), -1))
    return digits.posed(
        beside={"paired": Stream(negative, follow=True), "unlabelled": Stream(more, per_batch=14, draw=2)},
        paired=replace(digits, train=negative),
    )


def epoch_of(data: ArrayData, epoch: int) -> list[Batch]:
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def joined(batches: Iterable[Batch]) -> Batch:
    parts = list(batches)
    return Batch(*(torch.cat([getattr(batch, key) for batch in parts]) for key in KEYS))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, key), getattr(b, key)) for key in KEYS)


def pixels(split: Split, index: Tensor, view: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """What `split` shows of samples in given views, by the function that was there before there were streams."""
    statistics = torch.tensor(mean), torch.tensor(std)
    return apply_views(split.images[index], view[:, 0], view[:, 1], view[:, 2], PAD, *statistics)


# --- each kind of stream, recomputed ----------------------------------------------------------------------------------


def test_streams_move_no_bit_of_the_labelled_batch(digits: Dataset, rich: Dataset) -> None:
    plain, beside = (joined(epoch_of(ArrayData(data, 32, SEED), 3)) for data in (digits, rich))
    assert same(plain, beside)
    assert torch.equal(plain.index, order_of(SEED, 3, 100))
    assert torch.equal(plain.view, view_of(SEED, 3, plain.index, PAD, True))


def test_again_shows_the_same_samples_in_views_of_the_next_draw(rich: Dataset) -> None:
    for batch in epoch_of(ArrayData(rich, 32, SEED), 2):
        again = batch["again"]
        dy, dx, flip = (random_bits(SEED, 2, stream + 4, batch.index) for stream in (1, 2, 3))
        assert torch.equal(again.view, torch.stack([dy % 3, dx % 3, flip % 2], dim=1))
        assert torch.equal(again.index, batch.index)
        assert torch.equal(again.y, batch.y)
        assert torch.equal(again.x, pixels(rich.train, batch.index, again.view, rich.mean, rich.std))
        assert not torch.equal(again.view, batch.view)
        assert torch.equal(again.for_teacher.view, again.view)


def test_what_is_paired_follows_the_batch(rich: Dataset) -> None:
    stream = rich.beside["paired"].split
    for batch in epoch_of(ArrayData(rich, 32, SEED), 2):
        seen = batch.for_teacher
        assert seen is batch["paired"]
        assert torch.equal(seen.view, batch.view)
        assert torch.equal(seen.index, batch.index)
        assert torch.equal(seen.x, pixels(stream, batch.index, batch.view, (0.5,), (0.25,)))
    assert rich.for_teacher.train is stream


def test_without_a_pair_teachers_see_the_batch_itself(digits: Dataset) -> None:
    (batch, *_) = epoch_of(ArrayData(digits, 32, SEED), 0)
    assert batch.for_teacher is batch
    assert digits.for_teacher is digits


def recomputed(n: int, size: int, epoch: int, draw: int) -> tuple[Tensor, Tensor]:
    """Index and view of the first `size` samples of a stream of `n`, one at a time and by the definition."""
    laps = -(-size // n)
    numbers = torch.arange(n * laps)
    order, dy, dx, flip = (random_bits(SEED, epoch, 4 * draw + k, numbers).tolist() for k in range(4))
    index, view = [], []
    for lap in range(laps):
        for sample in sorted(range(n), key=order[n * lap : n * lap + n].__getitem__):
            number = sample + n * lap
            index.append(sample)
            view.append([dy[number] % 3, dx[number] % 3, flip[number] % 2])
    return torch.tensor(index[:size]), torch.tensor(view[:size])


def test_a_stream_of_its_own_order_wraps_in_a_new_order(rich: Dataset) -> None:
    stream = rich.beside["unlabelled"].split
    for epoch in (0, 4):
        batches = epoch_of(ArrayData(rich, 20, SEED), epoch)
        found = joined(batch["unlabelled"] for batch in batches)  # 5 batches of 14, of 60
        index, view = recomputed(60, 70, epoch, draw=2)
        assert torch.equal(found.index, index)
        assert torch.equal(found.view, view)
        assert torch.equal(found.x, pixels(stream, index, view, rich.mean, rich.std))
        assert torch.equal(found.y, torch.full((70,), -1))
        assert sorted(index[:60].tolist()) == list(range(60))
        again = batches[0]["unlabelled"]["again"]
        assert torch.equal(again.view, view_of(SEED, epoch, again.index, PAD, True, draw=3))


def test_streams_do_not_depend_on_the_batch_size_or_the_past(rich: Dataset) -> None:
    alone = epoch_of(ArrayData(rich, 50, SEED), 3)
    data = ArrayData(rich, 7, SEED)
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            batch["unlabelled"], batch["again"], batch["paired"]
    torch.manual_seed(3)
    loader.set_epoch(3)
    small = list(loader)
    for name in ("again", "paired"):
        assert same(joined(batch[name] for batch in alone), joined(batch[name] for batch in small))
    ours, theirs = (joined(batch["unlabelled"] for batch in batches) for batches in (small, alone))
    assert len(theirs) == 28
    assert same(theirs, Batch(*(getattr(ours, key)[:28] for key in KEYS)))


def test_a_stream_is_cut_when_it_is_asked_for_and_once(rich: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = Views._look
    monkeypatch.setattr(Views, "_look", lambda self, *args, **kwargs: looks.append(1) or look(self, *args, **kwargs))
    (batch, *_) = epoch_of(ArrayData(rich, 100, SEED), 0)
    assert len(looks) == 1
    others = [batch.seen_by({"unlabelled", "labels"}), batch.seen_by({"unlabelled"})]
    assert others[0]["unlabelled"] is batch["unlabelled"]
    assert torch.equal(others[1]["unlabelled"].x, batch["unlabelled"].x)
    assert others[1]["unlabelled"].x is batch["unlabelled"].x
    assert len(looks) == 2
    assert isinstance(batch.beside, Beside)
    assert set(batch.beside.cut) == {"unlabelled"}


def test_two_draws_of_one_sample_have_nothing_in_common() -> None:
    index = torch.arange(20_000)
    one, two = (view_of(SEED, 0, index, 4, True, draw) for draw in (0, 1))
    for column, levels in ((0, 9), (1, 9), (2, 2)):
        matches = (one[:, column] == two[:, column]).double().mean().item()
        assert abs(matches - 1 / levels) < 5 * (1 / levels / 20_000) ** 0.5


# --- laps and experiences ---------------------------------------------------------------------------------------------


def test_laps_show_every_sample_as_often_in_other_views(digits: Dataset) -> None:
    data = digits.posed(laps=3)
    assert data.spec.per_epoch == (300,)
    assert data.spec.n_train == 100
    for batch_size in (32, 7):
        batches = epoch_of(ArrayData(data, batch_size, SEED), 1)
        assert len(ArrayData(data, batch_size, SEED).train_dataloader()) == len(batches) == -(-300 // batch_size)
        found = joined(batches)
        index, view = recomputed(100, 300, 1, draw=0)
        assert torch.equal(found.index, index)
        assert torch.equal(found.view, view)
        assert torch.equal(found.y, data.train.labels[index])
    assert torch.equal(found.index[:100], order_of(SEED, 1, 100))
    again = joined(batch["again"] for batch in batches)
    number = found.index + 100 * (torch.arange(300) // 100)
    assert torch.equal(again.view, view_of(SEED, 1, number, PAD, True, draw=1))
    dropping = ArrayData(data, 32, SEED, drop_last=True)
    assert [len(batch) for batch in epoch_of(dropping, 1)] == [32] * 9
    assert dropping.images_seen(2) == 2 * 9 * 32


@pytest.fixture(scope="module")
def parts(digits: Dataset) -> Dataset:
    """Classes 0-1, 2-4 and 5-9, one after the other."""
    labels = digits.train.labels
    ends = ((0, 2), (2, 5), (5, 10))
    return digits.posed(experiences=tuple(((labels >= a) & (labels < b)).nonzero()[:, 0] for a, b in ends))


def test_an_epoch_shows_its_experience_alone(parts: Dataset) -> None:
    assert parts.spec.experiences == (2, 5, 10)
    assert parts.spec.per_epoch == (20, 30, 50)
    data = ArrayData(parts, 16, SEED, epochs=7)
    assert [data.experience_at(epoch) for epoch in range(9)] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    lengths = []
    for epoch in range(7):
        experience = data.experience_at(epoch)
        positions = parts.experiences[experience]
        loader = data.train_dataloader()
        loader.set_epoch(epoch)
        lengths.append(len(loader))
        found = joined(loader)
        bits = random_bits(SEED, epoch, 0, positions)
        assert torch.equal(found.index, positions[bits.argsort()])
        # the order of the whole, without the others: views and order of a sample do not ask who arrives with it
        whole = order_of(SEED, epoch, 100)
        assert torch.equal(found.index, whole[torch.isin(whole, positions)])
        assert torch.equal(found.view, view_of(SEED, epoch, found.index, PAD, True))
        assert torch.equal(data.positions(experience), positions)
    assert lengths == [2, 2, 2, 2, 2, 4, 4]
    assert data.images_seen(7) == 2 * 20 + 3 * 30 + 2 * 50
    with pytest.raises(ValueError, match="epochs"):
        ArrayData(parts, 16, SEED)


def test_any_sample_can_be_taken_as_the_epoch_shows_it_or_plain(parts: Dataset, rich: Dataset) -> None:
    data = ArrayData(parts, 16, SEED, epochs=6)
    shown = joined(epoch_of(data, 4))
    taken = data.take(shown.index, 4, plain=False)
    assert same(shown, taken)
    early = data.positions(0)  # of another experience
    assert torch.equal(data.take(early, 4, plain=False).view, view_of(SEED, 4, early, PAD, True))
    plain = data.take(early, 4, plain=True)
    expected = (parts.train.images[early].permute(0, 3, 1, 2).double() / 255 - parts.mean[0]) / parts.std[0]
    assert torch.allclose(plain.x.double(), expected, atol=1e-6)
    assert plain.view.unique(dim=0).tolist() == [[PAD, PAD, 0]]
    assert "again" not in plain.beside
    beside = ArrayData(rich, 16, SEED).take(torch.tensor([3, 3, 99]), 0, plain=True)
    assert torch.equal(beside.for_teacher.index, torch.tensor([3, 3, 99]))
    expected = (1 - rich.train.images[[3, 3, 99]].permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.25
    assert torch.allclose(beside.for_teacher.x.double(), expected, atol=1e-6)
    assert set(beside.beside) == {"paired"}


class Counter(pl.LightningModule):
    """Counts what it sees, batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: dict[int, list[Tensor]] = {}

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen.setdefault(self.current_epoch, []).append(batch.index)


def test_lightning_sees_loaders_of_other_lengths(parts: Dataset) -> None:
    module = Counter()
    trainer = pl.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(module, datamodule=ArrayData(parts, 16, SEED, epochs=6))
    assert {epoch: sum(map(len, seen)) for epoch, seen in module.seen.items()} == {
        0: 20,
        1: 20,
        2: 30,
        3: 30,
        4: 50,
        5: 50,
    }
    for epoch, seen in module.seen.items():
        assert torch.equal(torch.cat(seen).sort().values, parts.experiences[epoch // 2])


# --- what is not declared is not seen ---------------------------------------------------------------------------------


def test_labels_are_hidden_from_those_who_do_not_ask(rich: Dataset) -> None:
    known = rich.posed(beside={**rich.beside, "more": Stream(rich.test[slice(30)], per_batch=5, draw=4)})
    (batch, *_) = epoch_of(ArrayData(known, 32, SEED), 0)
    for needs in ({"teacher"}, {"teacher", "unlabelled", "more"}):
        seen = batch.seen_by(frozenset(needs))
        assert seen.x is batch.x
        assert torch.equal(seen.y, torch.full((32,), -1))
        for stream in (seen["again"], seen.for_teacher, seen["again"].for_teacher):
            assert stream.y.tolist() == [-1] * 32
        assert ("more" in seen.beside) == ("more" in needs)
    assert seen["more"].y.tolist() == [-1] * 5
    assert (batch["more"].y >= 0).all()
    whole = batch.seen_by({"labels", "more"})
    assert torch.equal(whole["more"].y, batch["more"].y)
    assert torch.equal(whole["again"].y, batch.y)
    with pytest.raises(UserError, match=r"no stream 'unlabelled' .*again, more.*scenario=semi_supervised"):
        whole["unlabelled"]
    assert batch.seen_by({"labels", "unlabelled", "more"}) is batch


def test_without_data_there_is_nothing(rich: Dataset) -> None:
    data = ArrayData(rich, 32, SEED)
    (batch, *_) = epoch_of(data, 0)
    (blind, *_) = epoch_of(ArrayData(rich, 32, SEED, blind=True), 0)
    seen = batch.seen_by({"no_data", "labels", "unlabelled"})
    for nothing in (blind, seen):
        assert nothing.x.shape == nothing.y.shape == (32, 0)
        assert (nothing.x.dtype, nothing.y.dtype) == (torch.float32, torch.int64)
        assert len(nothing.beside) == 0
        assert torch.equal(nothing.index, batch.index)
    assert nothing.for_teacher is nothing


def test_images_are_counted_as_declared(rich: Dataset) -> None:
    data = ArrayData(rich, 32, SEED)
    batches = epoch_of(data, 0)
    for needs, per_epoch in (
        ({"labels", "again"}, 100),
        ({"unlabelled"}, 100 + 4 * 14),
        ({"no_data", "unlabelled"}, 100),
    ):
        assert sum(batch.shown(needs) for batch in batches) == per_epoch
        assert sum(batch.seen_by(needs).shown(needs) for batch in batches) == per_epoch
        if "no_data" not in needs:
            assert data.images_seen(3, frozenset(needs)) == 3 * per_epoch
    assert not any(batch.beside.cut for batch in batches if isinstance(batch.beside, Beside))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_the_sum_of_two_batches_has_the_samples_of_both(rich: Dataset) -> None:
    data = ArrayData(rich, 32, SEED)
    (batch, *_) = epoch_of(data, 0)
    replayed = data.take(torch.tensor([4, 7]), 0, plain=False)
    both = batch + replayed
    for key in KEYS:
        assert torch.equal(getattr(both, key), torch.cat([getattr(batch, key), getattr(replayed, key)]))
    assert torch.equal(both.for_teacher.x, torch.cat([batch.for_teacher.x, replayed.for_teacher.x]))
    assert torch.equal(both["again"].view, torch.cat([batch["again"].view, replayed["again"].view]))
    assert both["unlabelled"] is batch["unlabelled"]
    assert both.shown({"unlabelled"}) == 34 + 14
    bare = Batch(*(getattr(replayed, key) for key in KEYS))
    with pytest.raises(UserError, match="no stream 'paired'"):
        _ = (batch + bare).for_teacher


def test_streams_may_be_given_as_batches() -> None:
    def of(n: int) -> Batch:
        return Batch(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), torch.arange(n), torch.zeros(n, 3).long())

    one = replace(of(4), beside={"again": of(4), "unlabelled": of(6)})
    assert len(one["unlabelled"]) == 6
    assert len((one + one)["again"]) == 8
    assert len((one + one)["unlabelled"]) == 6
    assert one.shown({"unlabelled"}) == 10


def test_a_batch_moves_with_its_streams(rich: Dataset) -> None:
    data = ArrayData(rich, 32, SEED)
    (batch, *_) = epoch_of(data, 0)
    assert batch.to("cpu") is batch
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    for part in (moved, moved["unlabelled"], moved.for_teacher):
        assert part.x.device.type == part.y.device.type == "meta"
    assert moved.shown({"unlabelled"}) == 46


# --- targets that move ------------------------------------------------------------------------------------------------


def painted(data: Dataset, ignore: int) -> tuple[Dataset, Tensor]:
    """Images that show their own mask in their first channel, in grey levels that are class numbers."""
    images = data.train.images.clone()
    images[..., 0] = data.train.labels.to(torch.uint8)
    return replace(data, train=replace(data.train, images=images), mean=(0.0,) * 3, std=(1 / 255,) * 3), images


@pytest.mark.parametrize("laps", [1, 2])
def test_masks_move_with_their_images(laps: int) -> None:
    data = DatasetConfig(name="shapes_masks", pad=4, flip=True).build()
    data = painted(data.posed(laps=laps), 255)[0]
    task = task_of(data.spec.task, data.spec.settings)
    module = ArrayData(data, 64, SEED, moved=task.moved)
    outside = 0
    for batch in epoch_of(module, 1):
        for seen in (batch, batch["again"]):
            assert seen.y.dtype == torch.int64
            shown, inside = seen.x[:, 0].round().long(), seen.y != 255
            assert torch.equal(shown[inside], seen.y[inside])
            outside += int((~inside).sum())
    assert outside
    held = next(iter(module.test_dataloader()))
    assert torch.equal(held.y, data.test.labels[: len(held)])


def test_depth_moves_with_its_images_and_says_nothing_outside() -> None:
    data = DatasetConfig(name="shapes_depth", pad=4, flip=True).build()
    task = task_of(data.spec.task, data.spec.settings)
    batch = next(iter(ArrayData(data, 32, SEED, moved=task.moved).train_dataloader()))
    depth = data.train.labels[batch.index]
    for i, (dy, dx, flip) in enumerate(batch.view.tolist()):
        padded = torch.nn.functional.pad(depth[i], (4, 4, 4, 4))
        window = padded[dy : dy + depth.shape[1], dx : dx + depth.shape[2]]
        assert torch.equal(batch.y[i], window.flip(1) if flip else window)
    taken = ArrayData(data, 32, SEED, moved=task.moved).take(batch.index, 0, plain=True)
    assert torch.equal(taken.y, depth)
