"""RandAugment, and images that are mixed: as torchvision has them, drawn for each image, and honest about labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Kdbench
from PIL import Image
from scipy import stats
from test_streamed import here as streamed  # noqa: F401
from torch import Tensor
from torchvision.transforms import v2
from worlds import IMAGES, SPEC

from kdbench import models
from kdbench.construct import construct
from kdbench.data.batch import Batch
from kdbench.data.crops import AUGMENT, FLIP, Crops, view_of
from kdbench.data.datasets import DatasetConfig
from kdbench.data.manifest import ImageFiles
from kdbench.data.mix import Mix, shares_of
from kdbench.data.mixed import Mixed
from kdbench.data.module import ArrayData
from kdbench.data.randaugment import OPERATIONS, SIGNED, STEPS, RandAugment, augmented, operated, operations_of
from kdbench.data.views import Views, order_of
from kdbench.errors import DoesNotFit, UserError
from kdbench.method import Method
from kdbench.protocol import Protocol
from kdbench.registry import methods

# ---- RandAugment ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((37, 44), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_torchvisions(image: Image.Image, operation: str) -> None:
    theirs = v2.RandAugment()
    magnitudes, signed = theirs._AUGMENTATION_SPACE[operation]
    assert signed == (operation in SIGNED)
    levels = magnitudes(theirs.num_magnitude_bins, image.height, image.width)
    for magnitude in range(STEPS):
        for sign in (1, -1) if signed else (1,):
            level = 0.0 if levels is None else sign * float(levels[magnitude])
            want = theirs._apply_image_or_video_transform(image, operation, level, theirs.interpolation, theirs._fill)
            got = operated(image, operation, magnitude, sign < 0)
            assert np.array_equal(np.asarray(got), np.asarray(want)), (magnitude, sign)


def test_operations_are_torchvisions_and_equally_likely(image: Image.Image) -> None:
    theirs = v2.RandAugment()
    assert set(OPERATIONS) == set(theirs._AUGMENTATION_SPACE)
    ours = RandAugment()
    assert (ours.ops, ours.magnitude, STEPS) == (theirs.num_ops, theirs.magnitude, theirs.num_magnitude_bins)
    which, signs = operations_of(torch.arange(14_000) * 7919, 3)
    for turn in range(3):
        assert stats.chisquare(which[:, turn].bincount(minlength=len(OPERATIONS)).numpy()).pvalue > 1e-3
        assert abs(float(signs[:, turn].double().mean()) - 0.5) < 0.02
    assert not torch.equal(which[:, 0], which[:, 1])
    # one behind the other
    once = operated(image, OPERATIONS[which[5, 0]], 9, bool(signs[5, 0]))
    twice = operated(once, OPERATIONS[which[5, 1]], 9, bool(signs[5, 1]))
    assert np.array_equal(np.asarray(augmented(image, 5 * 7919, RandAugment())), np.asarray(twice))


def test_streamed_images_are_changed_as_their_bits_say(streamed: Path) -> None:  # noqa: F811
    from test_streamed import MEAN, STD, built, epoch_of, loader
    from torchvision.transforms.v2 import functional as TF

    settings = {"size": 16, "randaugment": {"ops": 1, "magnitude": 20}}
    data = built(streamed, views=settings)
    assert isinstance(data.train.images, ImageFiles)
    index, x, _, view = epoch_of(loader(data), 2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for row, i in enumerate(index.tolist()):
        top, left, height, width = view[row, :4].tolist()
        with Image.open(data.train.images.path(i)) as file:
            shown = TF.resized_crop(file.convert("RGB"), top, left, height, width, [16, 16])
        shown = TF.hflip(shown) if view[row, FLIP] else shown
        which, signs = operations_of(view[row : row + 1, AUGMENT], 1)
        shown = operated(shown, OPERATIONS[int(which)], 20, bool(signs))
        pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 255
        assert torch.allclose(x[row], (pixels - mean) / std, atol=1e-6)
    # the crops are those that there would be without it
    sizes = torch.from_numpy(data.train.images.shapes)[index]
    plain = view_of(Crops(size=16), True, 3, 2, index, sizes)
    assert torch.equal(plain[:, :AUGMENT], view[:, :AUGMENT])
    assert plain[:, AUGMENT].eq(0).all()


# ---- mixed ------------------------------------------------------------------------------------------------------

N, SIDE, CLASSES = 21, 8, 3


def digits(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, SIDE, SIDE, 1), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n) % CLASSES


def views(batch_size: int, **more: Any) -> Views:
    images, labels = digits()
    return Views(images, labels, batch_size, 5, mean=(0.0,), std=(1.0,), augment=True, pad=1, **more)


def epoch(batches: Any) -> tuple[Tensor, ...]:
    parts = list(batches)
    return tuple(torch.cat([getattr(batch, key) for batch in parts]) for key in ("x", "y", "index"))


@pytest.mark.parametrize("mix", [Mix(mixup=0.2), Mix(cutmix=1.0), Mix(mixup=1.0, cutmix=0.5)])
def test_images_and_labels_have_the_same_shares(mix: Mix) -> None:
    plain = views(4)
    plain.set_epoch(2)
    x, y, index = epoch(plain)
    own, share = shares_of(mix, 5, 2, index, (SIDE, SIDE))
    assert torch.allclose(own.expand(-1, 1, SIDE, SIDE).mean(dim=(1, 2, 3)), share[:, 0], atol=1e-6)
    whole = own.expand(-1, 1, SIDE, SIDE).flatten(1)
    assert (whole.amin(dim=1) < whole.amax(dim=1)).any() == (mix.cutmix is not None)
    assert ((whole > 0) & (whole < 1)).any() == (mix.mixup is not None)
    want = own * x + (1 - own) * x.roll(1, 0)
    one_hot = torch.eye(CLASSES)[y]
    for size in (4, 5, N):  # whatever the batches
        some = views(size)
        some.set_epoch(2)
        batches = list(Mixed(some, mix, CLASSES))
        assert len(batches) == len(Mixed(some, mix, CLASSES)) == -(-N // size)
        assert not batches[0].beside
        got = epoch(batches)
        assert torch.equal(got[0], want)
        torch.testing.assert_close(got[1], share * one_hot + (1 - share) * one_hot.roll(1, 0))
        assert torch.equal(got[2], index)
    assert torch.equal(index, order_of(5, 2, N))
    # what is drawn for an image does not depend on the others
    assert torch.equal(shares_of(mix, 5, 2, index[7:9], (SIDE, SIDE))[0], own[7:9])
    assert not torch.equal(shares_of(mix, 5, 3, index, (SIDE, SIDE))[1], share)


def test_shares_are_distributed_as_torchvisions() -> None:
    index = torch.arange(4000)
    _, share = shares_of(Mix(mixup=0.4), 0, 0, index, (4, 4))
    assert stats.kstest(share[:, 0].numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    own, share = shares_of(Mix(cutmix=1.0), 0, 0, index, (24, 24))
    torch.manual_seed(0)
    theirs = v2.CutMix(num_classes=2)
    blank = torch.stack([torch.zeros(1, 24, 24), torch.ones(1, 24, 24)])
    want = torch.stack([theirs(blank, torch.tensor([0, 1]))[0][1, 0] for _ in range(4000)])
    assert stats.ks_2samp(want.mean(dim=(1, 2)).numpy(), share[:, 0].numpy()).pvalue > 1e-3
    assert float((want.mean(dim=0) - own.mean(dim=(0, 1))).abs().max()) < 0.05  # where boxes lie


def test_mixing_a_batch_by_torchvision_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = views(N)
    (batch,) = list(plain)
    ((x, y, _),) = [epoch(Mixed(plain, Mix(mixup=1.0), CLASSES))]
    _, share = shares_of(Mix(mixup=1.0), 5, 0, batch.index, (SIDE, SIDE))
    theirs = v2.MixUp(num_classes=CLASSES)
    for row in (0, 3, N - 1):
        monkeypatch.setattr(theirs, "make_params", lambda _, lam=float(share[row]): {"lam": lam})
        pixels, labels = theirs(batch.x, batch.y)
        torch.testing.assert_close(x[row], pixels[row])
        torch.testing.assert_close(y[row], labels[row])


def test_streamed_images_are_mixed_whatever_reads_them(streamed: Path) -> None:  # noqa: F811
    from test_streamed import built, loader

    data = built(streamed, mix={"mixup": 1.0})
    assert data.mix
    want, got = (epoch(Mixed(loader(data, size, number=number), data.mix, 2)) for size, number in ((8, 0), (7, 1)))
    assert all(map(torch.equal, want, got))
    assert isinstance(ArrayData(data, 8, 3).train_dataloader(), Mixed)
    assert not isinstance(ArrayData(data, 8, 3, blind=True).train_dataloader(), Mixed)
    assert (data.spec.mixed, data.spec.streams) == (True, ())
    taken = ArrayData(data, 8, 3).take(torch.tensor([0, 1]), 0, plain=False)
    assert taken.y.shape == (2,)


# ---- who reads labels -------------------------------------------------------------------------------------------


def bound(name: str) -> Method:
    entry = {entry.name: entry for entry in methods()}[name]
    method = construct(name, entry.cls, entry.settings, Protocol(epochs=2, batch_size=4))
    networks = [models.create(net, SPEC.shape, SPEC.num_classes) for net in (IMAGES.student, IMAGES.teacher)]
    return method.bind(networks[0], networks[1], replace(SPEC, mixed=True, streams=()))


@pytest.mark.parametrize("name", ["scratch", "kd", "at", "rkd"])
def test_a_cross_entropy_is_that_of_both_labels(name: str) -> None:
    method = bound(name)
    batch = Batch.of((torch.randn(6, *SPEC.shape), torch.tensor([0, 1, 2, 3, 4, 5])))
    labels = batch.y, batch.y.roll(1)
    share = torch.linspace(0, 1, 6)[:, None]
    one_hot = [torch.eye(SPEC.num_classes)[y] for y in labels]
    mixed = replace(batch, y=share * one_hot[0] + (1 - share) * one_hot[1])
    s, t = method.student_out(batch.x), method.teach(batch)
    got = method.losses(s, t, mixed)["ce"]  # type: ignore[arg-type]
    log_p = s.logits.log_softmax(1)
    rows = torch.arange(6)
    want = -(share[:, 0] * log_p[rows, labels[0]] + (1 - share[:, 0]) * log_p[rows, labels[1]]).mean()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["dkd", "crd", "wsld", "ps_kd"])
def test_who_asks_more_of_a_label_is_refused(name: str) -> None:
    with pytest.raises(
        DoesNotFit, match=r"asks more of a label than a cross-entropy .*: set dataset\.mix=null"
    ) as error:
        bound(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mix": {}}, "give mixup or cutmix an alpha"),
        ({"mix": {"mixup": 0.0}}, "bad value 0.0 for 'dataset.mix.mixup'"),
        ({"randaugment": {"ops": 1}}, "unknown key 'dataset.randaugment': choose from name, mean"),
        ({"mix": {"mixing": 1.0}}, "unknown key 'dataset.mix.mixing': choose from mixup, cutmix"),
        ({"name": "shapes_masks", "mix": {"mixup": 1.0}}, "dataset.mix is for labelled images"),
        ({"mix": {"mixup": 1.0}, "scenario": {"_target_": "kdbench.data.scenarios.Robust"}}, "drop one"),
        ({"views": {"size": 8, "randaugment": {"magnitude": 31}}}, "bad value 31 for 'dataset.views.randaugment.magn"),
        (
            {"views": {"size": 8, "randaugment": {"n": 2}}},
            "unknown key 'dataset.views.randaugment.n': choose from ops,",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DatasetConfig.of({"name": "digits", **settings}).build()


def test_views_that_come_round_again_are_not_mixed(streamed: Path) -> None:  # noqa: F811
    from test_streamed import built

    with pytest.raises(UserError, match="another image of it in each epoch: set one of them to null"):
        built(streamed, mix={"mixup": 1.0}, views={"size": 16, "cycle": 2})


def test_both_leave_old_identities_where_they_are() -> None:
    plain = DatasetConfig.of({"name": "digits", "views": {"size": 8}}).identity()
    more = {"views": {"size": 8, "randaugment": None}, "mix": None}
    assert DatasetConfig.of({"name": "digits", **more}).identity() == plain
    assert "randaugment" not in plain["views"]
    assert "mix" not in plain


def test_a_grid_on_mixed_images(kd: Kdbench) -> None:
    result = kd(
        *("run", "method=[scratch,kd,dkd,kd_unlabelled]", "dataset.mix={cutmix: 1.0}", "engine.view_cache=true"),
        *("protocol.epochs=1", "dataset.per_class=8", "engine.compile=false"),
    )
    assert result.code == 0
    (message,) = result.messages
    assert "left out: " in message
    assert "DKD asks more of a label" in message
    assert {record.cell.method for record in kd.records()} == {"scratch", "kd", "kd_unlabelled"}
    record = kd.record("kd")
    assert record.config["dataset"]["mix"] == {"mixup": None, "cutmix": 1.0}
    assert "mixed" in str(record.environment)
    (message,) = kd("teacher", "cache", "dataset.mix={cutmix: 1.0}", "dataset.per_class=8").messages
    assert "nothing is cached ahead: set dataset.mix=null" in message
