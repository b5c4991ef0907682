"""Data as publications use them: subsets by places in a file, images of another size, affine augmentation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from kdbench.data.datasets import Affine, DatasetConfig
from kdbench.data.embedded import EMBEDDED
from kdbench.data.views import Views, warp
from kdbench.errors import UserError


def build(**settings: Any) -> Any:
    return DatasetConfig.of({"name": "digits", **settings}).build()


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize(
    ("subset", "places"),
    [
        ({"n": 30}, np.arange(30)),
        ({"n": 30, "order": "last"}, np.arange(-30, 0)),
        # numpy.random.seed(230); numpy.random.shuffle(indices) of peterliht/knowledge-distillation-pytorch
        ({"n": 30, "order": "drawn", "seed": 230}, None),
    ],
)
def test_a_subset_is_counted_off_in_the_file(subset: dict[str, Any], places: Any) -> None:
    arrays = EMBEDDED["digits"]()
    if places is None:
        indices = list(range(len(arrays.train_labels)))
        np.random.RandomState(230).shuffle(indices)
        places = np.array(indices[:30])
    data = build(subset=subset)
    assert len(data.train) == 30
    assert rows(data.train.images) == rows(torch.from_numpy(arrays.train_images[places]))
    assert len(data.test) == len(arrays.test_labels)
    assert len(build(subset=subset, per_class=1).train) == len(set(arrays.train_labels[places].tolist()))


def test_all_splits_are_resized() -> None:
    data, whole = build(size=16, val=20), build(val=20)
    assert data.spec.shape == (1, 16, 16)
    for name in ("train", "val", "test"):
        small, large = getattr(whole, name), getattr(data, name)
        assert torch.equal(small.labels, large.labels)
        want = F.interpolate(small.images.permute(0, 3, 1, 2).float(), (16, 16), mode="bilinear")
        assert (large.images.permute(0, 3, 1, 2) - want).abs().max() <= 0.5 + 1e-3
    assert (data.mean, data.std) == (whole.mean, whole.std)


AFFINE = Affine(rotate=15.0, shift=0.1, zoom=0.1)


def test_an_image_is_read_where_kerass_generator_reads_it() -> None:
    """By SciPy: the matrix of zoom, shift and rotation about the middle, as Keras multiplies them."""
    x = torch.rand(3, 2, 12, 10, generator=torch.Generator().manual_seed(0))
    drawn = torch.randint(0, 2**62, (3, 5), generator=torch.Generator().manual_seed(1))
    got = warp(x, drawn, AFFINE)
    unit = 2 * ((drawn >> 39).double().numpy() / 2**24) - 1
    for image, found, (angle, down, right, tall, wide) in zip(x.numpy(), got, unit, strict=True):
        turn = math.radians(15) * angle
        rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
        shift = np.array([[1, 0, 12 * 0.1 * down], [0, 1, 10 * 0.1 * right], [0, 0, 1]])
        matrix = rotation @ shift @ np.diag([1 + 0.1 * tall, 1 + 0.1 * wide, 1])
        middle = np.array([[1, 0, 5.5], [0, 1, 4.5], [0, 0, 1]])
        matrix = middle @ matrix @ np.linalg.inv(middle)
        for channel, seen in zip(image, found, strict=True):
            want = ndimage.affine_transform(channel, matrix[:2, :2], matrix[:2, 2], order=1, mode="nearest")
            np.testing.assert_allclose(seen.numpy(), want, atol=1e-5)


def views(affine: Affine | None, augment: bool = True, seed: int = 0) -> Views:
    data = build(per_class=2)
    kwargs: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "augment": augment, "affine": affine}
    return Views(data.train.images, data.train.labels, 20, seed, **kwargs)


def test_warped_views_are_functions_of_seed_epoch_and_sample() -> None:
    plain, warped = views(None), views(AFFINE)
    (a,), (b,) = plain, warped
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.view, b.view[:, :3])
    assert torch.equal(b.x, warp(a.x, b.view[:, 3:], AFFINE))
    assert torch.equal(next(iter(views(AFFINE))).x, b.x)
    warped.set_epoch(1)
    assert not torch.equal(next(iter(warped)).view[:, 3:], b.view[:, 3:])
    assert not torch.equal(b["again"].x, b.x)
    assert torch.equal(warped.take(b.index, plain=True).x, a.x)
    assert torch.equal(next(iter(views(AFFINE, augment=False))).x, next(iter(views(None, augment=False))).x)
    assert (b.view[:, 3:].double().mean(0) / 2**62 - 1).abs().max() < 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"subset": {"n": 10**6}}, "dataset.subset.n=1000000 of the 1297 training images"),
        ({"subset": {"n": 3, "from": "end"}}, "unknown key 'dataset.subset.from': choose from n, order, seed"),
        ({"subset": {"n": 0}}, "bad value 0 for 'dataset.subset.n'"),
        ({"affine": {"shift": 1.5}}, "bad value 1.5 for 'dataset.affine.shift'"),
        ({"name": "shapes_masks", "affine": {"shift": 0.1}}, "dataset.affine is for labelled images"),
        ({"name": "shapes_masks", "size": 16}, "dataset.size is for labelled images"),
    ],
)
def test_what_cannot_be_is_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        build(**settings)
    assert said in str(error.value)


def test_settings_at_their_defaults_are_no_part_of_an_identity() -> None:
    plain = DatasetConfig.of({"name": "digits"}).identity()
    assert DatasetConfig.of({"name": "digits", "subset": None, "size": None, "affine": None}).identity() == plain
    subset = DatasetConfig.of({"name": "digits", "subset": {"n": 5, "order": "last"}}).identity()
    assert subset == {**plain, "subset": {"n": 5, "order": "last", "seed": 0}}
