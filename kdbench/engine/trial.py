"""Whether a method is the same when each batch is shared among devices: that is tried, as nothing declares it.

A method is another one in shares if a term compares the samples of a batch or averages over something else, if random
numbers are drawn for each, or if something is kept of them, as in a memory bank. So a few samples are played twice from
the same state, in shares and as a whole. What comes of it must be the same: terms, gradients, buffers, and where the
random numbers stand.

In float64, as networks have kinks: what float32 rounds to another side of one, moves a gradient by some per cent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.compute.device import tf32
from kdbench.data.batch import Batch
from kdbench.errors import DoesNotFit, UserError, out_of_memory
from kdbench.method import Crew, Method
from kdbench.tally import Tally
from kdbench.targets import first_line

CLOSE, NOTHING = 1e-4, 1e-9
"""How far apart the numbers of a tensor may be: as a share of the largest, and however small that is (of gradients as a
share of the largest in the step). Over some 200 methods and ten networks, rounding made at most 4e-12 of it, and what
is looked for 6e-3 or more of some tensor."""


class Trial:
    """What came of one step, which moves no parameter.

    Stands for the crew while it is made.
    """

    def __init__(self, crew: Crew | None) -> None:
        self._crew = crew
        self.terms_of: list[dict[str, Tensor]] = []
        self.gradients_of: list[dict[nn.Parameter, Tensor]] = []
        self.left: dict[str, Tensor] = {}

    def terms(self, terms: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
        terms = self._crew.terms(terms, samples) if self._crew else dict(terms)
        self.terms_of.append({name: value.detach() for name, value in terms.items()})
        return dict(terms)

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        if self._crew:
            self._crew.gradients(parameters)
        self.gradients_of.append({each: each.grad for each in parameters if each.grad is not None})
        for each in parameters:
            each.grad = None  # for which an optimiser does nothing


def step(crew: Crew | None, method: Method, batch: Batch, batch_idx: int) -> Trial:
    """What a training step would be; nothing of it remains.

    Raises:
        DoesNotFit: it fails, as the samples are so few, or something insists on float32.
    """
    trial = Trial(crew)
    with _undone(method), _in_double(method), torch.autocast(method.device.type, enabled=False), tf32(False):
        method.crew, method._tally, method._waiting = trial, Tally(), {}
        try:
            method.training_step(batch.each(_double), batch_idx)
        except UserError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise DoesNotFit(
                f"whether {type(method).__name__} is the same when devices share each batch cannot be tried on "
                f"{len(batch)} samples in float64 ({type(error).__name__}: {first_line(error)}): train it on one "
                "device (trainer.devices=1)."
            ) from error
        for optimizer in method._waiting.values():  # for the gradients of further batches
            trial.gradients([parameter for group in optimizer.param_groups for parameter in group["params"]])
        trial.left = {f"its buffer '{name}'": value.clone() for name, value in method.named_buffers()}
        trial.left["the state of its random numbers"] = torch.cat([method.rng.get_state(), torch.get_rng_state()])
        if method.device.type == "cuda":
            trial.left["the state of its random numbers on the GPU"] = torch.cuda.get_rng_state(method.device)
    return trial


def compare(shared: Trial, whole: Trial, method: Method) -> str | None:
    """The first thing that differs between both, as the subject of a sentence, or None."""
    for ours, wanted in zip(shared.terms_of, whole.terms_of, strict=True):
        for term, value in wanted.items():
            if _far(ours[term], value):
                return f"its term '{term}'"
    names = {parameter: name for name, parameter in method.named_parameters()}
    for got, gradients in zip(shared.gradients_of, whole.gradients_of, strict=True):
        least = NOTHING * max((float(each.abs().max()) for each in gradients.values()), default=0.0)
        for parameter, gradient in gradients.items():
            if _far(got.get(parameter, torch.zeros_like(gradient)), gradient, least):
                return f"the gradient of its '{names.get(parameter, 'parameters')}'"
    for what, left in whole.left.items():
        if shared.left[what].shape != left.shape or _far(shared.left[what], left):
            return what
    return None


def _far(a: Tensor, b: Tensor, least: float = NOTHING) -> bool:
    """Whether they differ by more than rounding explains; whole numbers at all."""
    if not b.is_floating_point():
        return not torch.equal(a, b)
    a, b = a.double(), b.double()  # a term that insists on float32 is summed with others in float64
    largest = float(b.abs().max()) if b.numel() else 0.0
    return not torch.allclose(a, b, rtol=0.0, atol=CLOSE * largest + least, equal_nan=True)


@contextmanager
def _undone(method: Method) -> Iterator[None]:
    """What is played meanwhile leaves no trace: attributes, random numbers, and no gradients."""
    device = method.device
    attributes = [(module, dict(vars(module))) for module in method.modules()]
    changed = [each for _, own in attributes for each in own.values() if isinstance(each, dict)]
    inside = [each.copy() for each in changed]
    tensors = [(tensor, tensor.data) for tensor in (*method.parameters(), *method.buffers())]
    drawn, by_method = torch.get_rng_state(), method.rng.get_state()
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    for tensor, data in tensors:
        tensor.grad, tensor.data = None, data.clone()
    try:
        yield
    finally:
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
        for each, was in zip(changed, inside, strict=True):
            each.clear()
            each.update(was)
        for tensor, data in tensors:
            tensor.grad, tensor.data = None, data
        torch.set_rng_state(drawn)
        method.rng.set_state(by_method)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)


@contextmanager
def _in_double(method: Method) -> Iterator[None]:
    """All numbers of a method in float64, also what it makes, and what its teachers say."""
    usual = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, usual)
        torch.set_default_dtype(torch.float64)
        for tensor in (*method.parameters(), *method.buffers()):
            tensor.data = _double(tensor.data)
        for teacher in dict.fromkeys(method._teachers):
            stack.enter_context(_teaching_in_double(teacher))
        yield


@contextmanager
def _teaching_in_double(teacher: nn.Module) -> Iterator[None]:
    """But for its fast copy, whose words are no others in a smaller batch."""
    plain: Any = teacher.plain
    tensors = [(tensor, tensor.data) for tensor in (*plain.parameters(), *plain.buffers())]
    tap: Any = teacher.tap

    def heard(x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        return {name: _double(value) for name, value in tap(x, names).items()}

    try:
        vars(teacher)["tap"] = heard
        for tensor, data in tensors:
            tensor.data = _double(data)
        yield
    finally:
        del vars(teacher)["tap"]
        for tensor, data in tensors:
            tensor.data = data


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
