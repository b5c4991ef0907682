"""Our losses and their gradients against values of the public reference implementations (``golden/README.md``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import parity
import pytest
import torch
from parity.arrays import CASES, UNUSED, Arrays

GOLDEN = Path(__file__).parent / "golden"
SOURCES: dict[str, Any] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GOLDEN.glob("*.json"))
}
for _module in iter_modules(parity.__path__):
    import_module(f"parity.{_module.name}")


def split_gradient(key: str) -> tuple[str, str]:
    """(loss, input) of ``grad_INPUT``, ``grad_TERM__INPUT`` or ``grad_loss_TERM__INPUT``."""
    term, _, name = key.removeprefix("grad_").rpartition("__")
    return ("loss" if not term else f"loss_{term.removeprefix('loss_')}"), name


def gradients_of(case: str, values: Mapping[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """The stored gradients that are compared: key -> (loss, input), as the source says where the key does not."""
    told = {key: (loss, name) for key, (loss, name) in SOURCES[case].get("gradients", {}).items()}
    keys = [key for key in values if key.startswith("grad_") and key not in UNUSED[case]]
    return {key: told.get(key) or split_gradient(key) for key in keys}


def load(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        return dict(file)


def check(case: str, values: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
    """Raises AssertionError unless every stored array is an input that is read, or reproduced."""
    assert sorted(values) == SOURCES[case]["arrays"]
    tolerance = SOURCES[case]["tolerance"][str(dtype).removeprefix("torch.")]
    arrays = Arrays(values, dtype)
    ours = CASES[case](arrays)
    gradients = gradients_of(case, values)
    results = [key for key in values if key.startswith(("loss", "out_"))]
    assert sorted(ours) == sorted(results)
    assert set(values) == arrays.read | set(results) | set(gradients) | set(UNUSED[case])
    # every leaf has a stored gradient
    assert {name for _, name in gradients.values()} == set(arrays.leaves)

    for key in results:
        expected = torch.from_numpy(np.asarray(values[key])).double()
        # what is zero throughout has no scale of its own
        error = (ours[key].detach().double() - expected).abs().max() / (expected.abs().max() or 1)
        assert error <= tolerance["loss"], f"{key}: relative error {error:.1e}"
    for loss in {loss for loss, _ in gradients.values()}:
        keys = [key for key in gradients if gradients[key][0] == loss]
        largest = max(np.abs(values[key]).max() for key in keys)
        leaves = [arrays.leaves[gradients[key][1]] for key in keys]
        found = torch.autograd.grad(ours[loss], leaves, retain_graph=True, allow_unused=True)
        for key, gradient in zip(keys, found, strict=True):
            expected = torch.from_numpy(values[key])
            gradient = torch.zeros_like(expected) if gradient is None else gradient.double()
            error = (gradient - expected).abs().max() / largest
            assert error <= tolerance["gradient"], f"{key}: error {error:.1e} of the largest gradient"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", SOURCES)
def test_losses_and_gradients_are_the_references(case: str, dtype: torch.dtype) -> None:
    check(case, load(case), dtype)


def test_every_file_has_a_source_and_a_case() -> None:
    files = {path.stem for path in GOLDEN.glob("*.npz")}
    assert files == set(SOURCES) == set(CASES)
    for case, source in SOURCES.items():
        assert hashlib.sha256((GOLDEN / f"{case}.npz").read_bytes()).hexdigest() == source["sha256"], case
        assert source["formula"]
        assert source["reduction"]
        for reference in source["reference"]:
            assert len(reference["commit"]) == 40
            assert reference["repository"].count("/") == 1
            assert reference["path"]
            assert reference["symbol"]


@pytest.mark.parametrize("case", SOURCES)
def test_a_key_that_is_missing_fails(case: str) -> None:
    values = load(case)
    for key in values:
        with pytest.raises((AssertionError, KeyError)):
            check(case, {name: value for name, value in values.items() if name != key}, torch.float64)


@pytest.mark.parametrize("case", SOURCES)
def test_a_wrong_expectation_fails(case: str) -> None:
    """The comparison has teeth: one entry of any expected array, off by 1 %, is found."""
    values = load(case)
    for key in values:
        if key.startswith(("loss", "out_")) or key in gradients_of(case, values):
            wrong = np.array(values[key])
            index = np.unravel_index(np.abs(wrong).argmax(), wrong.shape)
            # the gradient of a constant side, or of a bias in front of batch norm, is zero: then 1 % of the others
            alike = [np.abs(values[k]).max() for k in values if k.startswith("grad_")] if "grad" in key else [0]
            if wrong.dtype == bool:
                wrong[index] ^= True
            else:
                whole = np.issubdtype(wrong.dtype, np.integer)
                wrong[index] += 1 if whole else 0.01 * (max(np.abs(wrong[index]), *alike) or 1)
            with pytest.raises(AssertionError, match=key):
                check(case, {**values, key: wrong}, torch.float64)
