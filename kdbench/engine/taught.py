"""A trained teacher as a cohort shares it: frozen, on a route, with the cache of what it said before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.data.datasets import Dataset
from kdbench.data.module import ArrayData
from kdbench.engine.frozen import CACHED, FrozenTeacher
from kdbench.engine.making import device_name
from kdbench.engine.route import Route
from kdbench.engine.teachers import Card
from kdbench.engine.view_cache import ViewCache
from kdbench.paths import cache_dir
from kdbench.protocol import Protocol
from kdbench.results.record import Agreement
from kdbench.taps import probe

COMPARED = 1000
"""Test images on which a fast teacher is compared with its float32 self: a second or two on a CPU."""


@dataclass
class Taught:
    """A teacher, and how the cells of one data set and protocol share it."""

    card: Card
    frozen: FrozenTeacher
    route: Route
    _agreement: Agreement | None = field(default=None, init=False)

    def agreement(self, dataset: Dataset) -> Agreement | None:
        """Of what the cells see with the float32 network, on the first test images; None where they see just that."""
        if self.route.fast and self._agreement is None:
            test = ArrayData(dataset, batch_size=1, seed=0, eval_batch_size=100).test_dataloader()
            device = next(self.frozen.parameters()).device
            self._agreement = self.frozen.agreement(batch.x.to(device) for batch in islice(test, COMPARED // 100))
        return self._agreement


def share(
    card: Card,
    net: nn.Module,
    dataset: Dataset,
    identity: Mapping[str, Any],
    protocol: Protocol,
    route: Route,
    device: torch.device,
    say: Callable[[str], None],
) -> Taught:
    """The teacher of these cells on their route.

    Args:
        net: as it was loaded.
        identity: the data set's config, as it stands in a cell's.
        say: told if a damaged view cache is begun anew.

    Raises:
        UserError: the view cache cannot be written, or the disk has no room for it.
    """
    frozen = FrozenTeacher(net, dataset.spec.shape, route, protocol.batch_size).to(device)
    if route.cached:
        # all that can change a bit of what the teacher says
        key = {
            "teacher": card.sha256,
            "name": card.name,
            "data": dataset.content_hash,
            "dataset": dict(identity),
            "mean": dataset.mean,
            "std": dataset.std,
            "device": device_name(device),
            "torch": torch.__version__,
            "granularity": frozen.granularity,
        }
        cache = open_cache(cache_dir() / "views", key, frozen, dataset)
        if cache.rebuilt:
            say(f"the view cache of {card.name} is begun anew: {cache.rebuilt}.")
        cache.check_room(dataset.spec.n_train * protocol.epochs)
        frozen.cache = cache
    return Taught(card, frozen, route)


def open_cache(root: Path, key: Mapping[str, Any], frozen: FrozenTeacher, dataset: Dataset) -> ViewCache:
    """The view cache of `key` under `root`, with a place for every view of the training images."""
    shapes = probe("teacher", frozen.plain, dataset.spec.shape).shapes
    return ViewCache.open(
        root,
        key,
        samples=dataset.spec.n_train,
        pad=dataset.pad,
        flip=dataset.flip,
        widths={name: shapes[name][0] for name in sorted(CACHED)},
        dtype=frozen.dtype,
    )
