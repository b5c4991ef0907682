"""What a golden case is made of: the arrays of one file, and a registry of the cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.method import Method
from kdbench.taps import Out


class Arrays:
    """One golden file as tensors; remembers what was read, and whose gradients are asked for."""

    def __init__(self, values: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
        self.values, self.dtype = values, dtype
        self.leaves: dict[str, Tensor] = {}
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        """An input; float arrays in the dtype under test."""
        self.read.add(name)
        value = torch.from_numpy(self.values[name])
        return value.to(self.dtype) if value.is_floating_point() else value

    def leaf(self, name: str) -> Tensor:
        """An input that gradients are taken of."""
        return self.leaves.setdefault(name, self[name].requires_grad_())

    def load(self, module: nn.Module, names: Mapping[str, str]) -> None:
        """Copy the reference's parameters into ours; `names`: each name of ours -> the reference's."""
        module.to(self.dtype)
        parameters = dict(module.named_parameters())
        assert set(names) == set(parameters)
        for ours, theirs in names.items():
            value = self[f"param_{theirs}"]
            assert parameters[ours].shape == value.shape
            parameters[ours].data.copy_(value)
            self.leaves[f"param_{theirs}"] = parameters[ours]

    def layers(self, side: str) -> list[str]:
        return sorted(name for name in self.values if name.startswith(f"{side}_feat_"))


class Given(nn.Module):
    """Stands for an exit whose outputs are inputs of the case."""

    def __init__(self, *outputs: Tensor | list[Tensor]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor | list[Tensor]) -> tuple[Tensor | list[Tensor], ...]:
        return self.outputs


Case = Callable[[Arrays], dict[str, Tensor]]
CASES: dict[str, Case] = {}
"""Golden name (of the file and the function) -> golden name of each loss and result -> ours."""
UNUSED: dict[str, Mapping[str, str]] = {}
"""Arrays of a file that no test needs, with the reason; everything else must be read or reproduced."""


def golden(*, unused: Mapping[str, str] | None = None) -> Callable[[Case], Case]:
    """Register a function as the case of the golden file of its name."""

    def register(case: Case) -> Case:
        CASES[case.__name__], UNUSED[case.__name__] = case, unused or {}
        return case

    return register


def terms_of(method: Method, s: Mapping[str, Tensor], t: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    """A method's own terms, for given taps."""
    batch = Batch(x=torch.zeros(len(y), 0), y=y, index=torch.arange(len(y)), view=torch.zeros(len(y), 3).long())
    return method.losses(Out(s), Out(t), batch)
