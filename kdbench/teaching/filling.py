"""Fill the view cache ahead of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.data.datasets import Dataset
from kdbench.data.views import apply_views, view_of
from kdbench.teaching.frozen import FrozenTeacher


def views_of(dataset: Dataset, seeds: Iterable[int], epochs: int) -> Tensor:
    """Every view that training with these seeds will see, each once: int64, (V, 4) of (index, dy, dx, flip)."""
    index = torch.arange(dataset.spec.n_train)
    seen = torch.zeros(0, dtype=torch.int64)
    side = 2 * dataset.pad + 1
    for seed in seeds:
        for epoch, lap in product(range(epochs), range(dataset.laps)):
            # in the pass p of an epoch the sample i is number i + n·p, see `kdbench.data.views`
            number = index + lap * dataset.spec.n_train
            dy, dx, flip = view_of(seed, epoch, number, dataset.pad, dataset.flip).unbind(1)
            code = ((index * side + dy) * side + dx) * 2 + flip
            seen = torch.unique(torch.cat([seen, code]))
    return _decoded(seen, side)


def all_views(dataset: Dataset) -> Tensor:
    """Every view that there is, as of `views_of`."""
    side = 2 * dataset.pad + 1
    codes = torch.arange(dataset.spec.n_train * side * side * 2)
    return _decoded(codes if dataset.flip else codes[::2], side)


def _decoded(code: Tensor, side: int) -> Tensor:
    code, flip = code // 2, code % 2
    code, dx = code // side, code % side
    return torch.stack([code // side, code % side, dx, flip], dim=1)


def fill(
    frozen: FrozenTeacher, dataset: Dataset, views: Tensor, batch_size: int, device: torch.device
) -> Iterator[int]:
    """Have the teacher look at `views` (V, 4); those that are in its cache cost nothing. Yields how many are done."""
    dataset = dataset.for_teacher
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (dataset.mean, dataset.std))
    pixels, labels = dataset.train.pixels.to(device), dataset.train.labels
    for part in views.split(batch_size):
        index, view = part[:, 0], part[:, 1:]
        dy, dx, flip = view.to(device).unbind(1)
        x = apply_views(pixels[index.to(device)], dy, dx, flip, dataset.pad, mean, std)
        frozen.serve(Batch(x, labels[index], index, view))
        with torch.no_grad():
            frozen.tap(x, ("logits", "embed"))
        frozen.serve(None)
        yield len(part)
