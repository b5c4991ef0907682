"""Scenes of shapes that are drawn from a seed: dense data that need no file.

A scene is what a camera above a floor sees of flat shapes that stand on it, before a wall with a window: a nearer shape
is larger, stands lower in the image and hides what is behind it, so depth can be learnt from a single image. Everything
is integer arithmetic on `kdbench.draws.random_bits`: every platform draws the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kdbench.draws import random_bits

SIZE = 32
"""Height and width of a scene in pixels."""
SHAPES = ("disc", "square", "triangle", "cross", "ring")
MOST = 4
"""Shapes in a scene at most; there is at least one."""
FOCAL, CAMERA = 28, 1200
"""Focal length in pixels (so the field of view is 60 degrees) and height of the camera above the floor in mm."""
VISIBLE = 12
"""Shapes of which fewer pixels would be seen are left out."""
NOISE = 24
"""Each channel of each pixel is moved by at most this."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Scenes:
    """Images with all that is known of them.

    Attributes:
        images: uint8, (N, SIZE, SIZE, 3).
        masks: uint8, (N, SIZE, SIZE): 0 for the background, 1.. for `SHAPES`.
        depth: uint16, (N, SIZE, SIZE), in mm; 0 in the window, through which a sensor sees nothing.
        boxes: float32, (N, MOST, 5): (class, x0, y0, x1, y1) around what is seen of each shape, 0.. for `SHAPES`; class
            -1 where there are fewer.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    depth: NDArray[np.uint16]
    boxes: NDArray[np.float32]


def scenes(n: int, seed: int) -> Scenes:
    """Draw `n` scenes."""
    horizon = _draw(n, seed, 0, 0, 9, 13)
    wall = _draw(n, seed, 0, 1, 5500, 9000)
    number = _draw(n, seed, 0, 2, 1, MOST)
    floor_colour = _draw(n * 3, seed, 0, 3, 64, 191).reshape(n, 3)
    wall_colour = floor_colour + _draw(n * 3, seed, 0, 4, -32, 32).reshape(n, 3)
    window = [_draw(n, seed, 0, 5, 0, SIZE - 10), _draw(n, seed, 0, 6, 4, 10)]
    kinds, far, tall, across = (
        np.stack([_draw(n, seed, 1 + k, stream, *span) for k in range(MOST)], axis=1)
        for stream, span in enumerate(((0, len(SHAPES) - 1), (1800, 4500), (1000, 1500), (0, 999)))
    )
    # at least 64 from the floor and 32 from the wall in every channel, where 256 is followed by 0
    offset = np.stack([_draw(n * 3, seed, 1 + k, 4, 64, 192).reshape(n, 3) for k in range(MOST)], axis=1)
    shape_colour = (floor_colour[:, None] + offset) % 256
    texture = (patches(n, SIZE, seed) - 128) // 4

    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.int64)
    images = np.empty((n, SIZE, SIZE, 3), dtype=np.int64)
    masks = np.zeros((n, SIZE, SIZE), dtype=np.uint8)
    depth = np.empty((n, SIZE, SIZE), dtype=np.uint16)
    boxes = np.zeros((n, MOST, 5), dtype=np.float32)
    boxes[..., 0] = -1
    for i in range(n):
        below = 2 * (rows - horizon[i]) + 1  # half pixels from the horizon to the middle of the row
        floor = np.where(below > 0, 2 * FOCAL * CAMERA // np.maximum(below, 1), wall[i])
        depth[i] = np.minimum(floor, wall[i])
        images[i] = np.where((floor < wall[i])[..., None], floor_colour[i], wall_colour[i]) + texture[i][..., None]
        left, width = (part[i] for part in window)
        glass = (rows >= 1) & (rows < horizon[i] - 2) & (columns >= left) & (columns < left + width)
        images[i][glass] += 64
        depth[i][glass] = 0
        free = np.ones((SIZE, SIZE), dtype=np.bool_)
        found = 0
        for k in np.argsort(far[i, : number[i]], kind="stable"):  # the nearest first, which hides what is behind it
            side = FOCAL * tall[i, k] // far[i, k]
            foot = horizon[i] + FOCAL * CAMERA // far[i, k]
            room = SIZE - side + 2 * (side // 3)  # a third may lie outside of the image
            x0 = room * across[i, k] // 1000 - side // 3
            seen = free & inside(SHAPES[kinds[i, k]], rows - (foot - side), columns - x0, int(side))
            if seen.sum() < VISIBLE:
                continue
            free &= ~seen
            images[i][seen] = shape_colour[i, k] + texture[i][seen][:, None]
            masks[i][seen] = 1 + kinds[i, k]
            depth[i][seen] = far[i, k]
            y, x = np.nonzero(seen)
            boxes[i, found] = kinds[i, k], x.min(), y.min(), x.max() + 1, y.max() + 1
            found += 1
    noise = _draw(images.size, seed, 0, 7, -NOISE, NOISE).reshape(images.shape)
    return Scenes(np.clip(images + noise, 0, 255).astype(np.uint8), masks, depth, boxes)


def inside(shape: str, y: Ints, x: Ints, side: int) -> NDArray[np.bool_]:
    """Which pixels are of a shape that fills a square of `side` pixels, by their places from its upper left corner."""
    u, v = 2 * x + 1 - side, 2 * y + 1 - side  # half pixels from the middle of the square to that of the pixel
    square = (abs(u) < side) & (abs(v) < side)
    match shape:
        case "disc":
            return u * u + v * v <= side * side
        case "ring":
            return (u * u + v * v <= side * side) & (4 * (u * u + v * v) >= side * side)
        case "triangle":
            return square & (2 * abs(u) <= v + side + 1)
        case "cross":
            return square & ((3 * abs(u) <= side) | (3 * abs(v) <= side))
    return square


def patches(n: int, size: int, seed: int) -> Ints:
    """Smooth grey patches, (n, size, size), 0..255: random at the corners of 2x2 tiles, bilinear between."""
    corners = _draw(n * 9, seed, 0, 8, 0, 255).reshape(n, 3, 3)
    tile = size // 2
    at = np.arange(size, dtype=np.int64)
    weight = 2 * (at % tile) + 1  # of the later corner, out of 2 * tile
    along = corners[:, at // tile] * (2 * tile - weight)[:, None] + corners[:, at // tile + 1] * weight[:, None]
    across = along[:, :, at // tile] * (2 * tile - weight) + along[:, :, at // tile + 1] * weight
    return np.asarray(across // (4 * tile * tile), dtype=np.int64)


def _draw(n: int, seed: int, part: int, stream: int, low: int, high: int) -> Ints:
    """`n` whole numbers of low..high."""
    drawn: Ints = random_bits(seed, part, stream, torch.arange(n)).numpy()
    return low + drawn % (high - low + 1)
