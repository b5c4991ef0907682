"""Embedded data: scenes of shapes, drawn analytically, and digits in another domain."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from kdbench.data.arrays import check, load, paired
from kdbench.data.embedded import EMBEDDED
from kdbench.data.prepare import prepare, verify
from kdbench.data.scenes import CAMERA, FOCAL, SHAPES, SIZE, inside, patches, scenes
from kdbench.draws import random_bits

NEEDED = ("digits", "digits_m", "shapes_masks", "shapes_depth", "shapes_boxes")


@pytest.mark.parametrize("name", NEEDED)
def test_embedded_sets_are_whole_and_known(name: str) -> None:
    check(EMBEDDED[name]())
    row = verify(name)
    assert (row.status, row.folder) == ("verified", None)
    assert prepare(name).status == "embedded"
    assert load(name) is load(name)


def test_no_set_is_embedded_without_a_test() -> None:
    assert set(EMBEDDED) == set(NEEDED)


def test_shapes_have_the_areas_of_geometry() -> None:
    side = 300
    y, x = np.mgrid[:side, :side]
    areas = {"square": 1, "disc": np.pi / 4, "triangle": 1 / 2, "cross": 5 / 9, "ring": np.pi / 4 * 3 / 4}
    assert set(areas) == set(SHAPES)
    for shape, share in areas.items():
        drawn = inside(shape, y, x, side)
        assert drawn.mean() == pytest.approx(share, abs=0.005), shape
        assert np.array_equal(drawn, drawn[:, ::-1]), shape  # left as right
    widths = inside("triangle", y, x, side).sum(axis=1)
    assert np.all(np.diff(widths) >= 0)  # on its base
    far = np.mgrid[-5 : side + 5, -5 : side + 5]
    for shape in SHAPES:
        assert inside(shape, *far, side).sum() == inside(shape, y, x, side).sum(), shape


def test_the_first_colours_of_a_scene_come_from_the_generator() -> None:
    """The floor in the lowest corner is colour, texture and noise, each by its definition."""
    made = scenes(1, seed=5)
    assert made.masks[0, -1, 0] == 0  # nothing stands there

    def draw(stream: int, index: int, low: int, high: int) -> int:
        return low + int(random_bits(5, 0, stream, torch.tensor([index]))[0]) % (high - low + 1)

    texture = (int(patches(1, SIZE, 5)[0, -1, 0]) - 128) // 4
    for channel in range(3):
        place = ((SIZE - 1) * SIZE + 0) * 3 + channel
        expected = draw(3, channel, 64, 191) + texture + draw(7, place, -24, 24)
        assert made.images[0, -1, 0, channel] == np.clip(expected, 0, 255)


def test_patches_are_bilinear_between_corners() -> None:
    patch = patches(1, 8, seed=1)[0]
    corners = np.array([[int(v)] for v in random_bits(1, 0, 8, torch.arange(9)) % 256]).reshape(3, 3)
    rows, columns = (np.arange(8) + 0.5) / 4, (np.arange(8) + 0.5) / 4
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            a, b = int(y), int(x)
            u, v = y - a, x - b
            upper = corners[a, b] * (1 - v) + corners[a, b + 1] * v
            lower = corners[a + 1, b] * (1 - v) + corners[a + 1, b + 1] * v
            assert patch[i, j] == int(upper * (1 - u) + lower * u)


def test_masks_depth_and_boxes_tell_the_same() -> None:
    made = scenes(60, seed=3)
    seen = 0
    for mask, depth, boxes in zip(made.masks, made.depth, made.boxes, strict=True):
        there = boxes[boxes[:, 0] >= 0]
        assert len(there) >= 1
        inside_any = np.zeros((SIZE, SIZE), dtype=bool)
        for label, x0, y0, x1, y1 in there.astype(int):
            part = (mask == label + 1)[y0:y1, x0:x1]
            assert part.sum() >= 12
            for edge in (part[0], part[-1], part[:, 0], part[:, -1]):  # tight on every side
                assert edge.any()
            inside_any[y0:y1, x0:x1] = True
            seen += 1
        assert not (mask[~inside_any] > 0).any()
        assert (depth[mask > 0] >= 1800).all()
        assert (depth[mask > 0] <= 4500).all()
        assert (depth[depth > 0] <= 9000).all()
        assert (depth == 0).any()  # the window, which is no shape's
        assert not (mask[depth == 0] > 0).any()
    assert seen > 100


def test_a_nearer_shape_is_larger_and_stands_lower() -> None:
    """A whole shape that no other touches: its foot by similar triangles, and the floor at its distance there."""
    made = scenes(200, seed=11)
    checked = 0
    for mask, depth, boxes in zip(made.masks, made.depth, made.boxes, strict=True):
        there = boxes[boxes[:, 0] >= 0].astype(int)
        if len(there) != 1:
            continue
        label, x0, y0, x1, y1 = there[0]
        distance = int(depth[mask == label + 1][0])
        assert (depth[mask == label + 1] == distance).all()
        if x0 > 0 and x1 < SIZE and y1 < SIZE:
            assert x1 - x0 == y1 - y0
            height = (y1 - y0) * distance / FOCAL  # in mm, less than a pixel too small
            assert 1000 - distance / FOCAL <= height <= 1500
            floor = depth[y1, x0 : x1 + 1].astype(int)  # at its foot: the same but for what a row of pixels is worth
            assert (abs(floor - distance) <= distance**2 / (FOCAL * CAMERA)).all()
            checked += 1
    assert checked > 20


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    few, many, other = scenes(3, seed=2), scenes(8, seed=2), scenes(3, seed=4)
    assert np.array_equal(few.masks, many.masks[:3])
    assert np.array_equal(few.depth, many.depth[:3])
    assert not np.array_equal(few.masks, other.masks)
    train, test = load("shapes_masks").train_images, load("shapes_masks").test_images
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}


def test_the_three_tasks_share_their_images() -> None:
    sets = [load(name) for name in NEEDED[2:]]
    digests = {hashlib.sha256(arrays.train_images.tobytes()).hexdigest() for arrays in sets}
    assert len(digests) == 1
    assert [(arrays.task, arrays.outputs) for arrays in sets] == [("segmentation", 6), ("depth", 1), ("detection", 5)]
    assert np.bincount(sets[0].train_labels.reshape(-1)).min() > 0.02 * sets[0].train_labels.size


def test_digits_of_another_domain_are_paired_with_digits() -> None:
    plain, other = load("digits"), load("digits_m")
    pairs = paired(other, plain)
    for seed, split in enumerate(("train", "test")):
        assert np.array_equal(pairs[split], np.arange(len(plain.split(split)[1])))
        grey = plain.split(split)[0][..., 0].astype(int)
        back = patches(len(grey), 8, seed) // 2
        assert np.array_equal(other.split(split)[0][..., 0], np.where(back > grey, back - grey, grey - back))


def test_the_other_domain_is_harder_but_not_hopeless() -> None:
    def flat(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) / 255

    plain, other = load("digits"), load("digits_m")
    model = LogisticRegression(max_iter=200).fit(flat(plain.train_images), plain.train_labels)
    here, there = (model.score(flat(a.test_images), a.test_labels) for a in (plain, other))
    assert here > 0.93
    assert 0.3 < there < 0.9
