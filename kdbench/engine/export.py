"""Students as files for other programs, each tried against the network before it is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from kdbench.engine.students import FACTS, Deployed, FromPixels, Student, packed
from kdbench.errors import UserError
from kdbench.files import write_atomic, writing_to
from kdbench.targets import first_line

TRIED = 16
"""Random inputs, in one batch: of another size than the one that an export traces."""
CLOSE = 1e-4
"""By how much of its largest logit an exported network may differ: it adds in another order."""

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        apart: the largest difference of any logit from the network's.
    """

    path: Path
    apart: float


def export(student: Student, kind: str, path: Path) -> Exported:
    """Write a student to `path`, as `FORMATS` says.

    What was written is read again, and compared with the network on random inputs.

    Raises:
        UserError: `path` exists or cannot be written; the format lacks a library, cannot hold this network, or says
            something else.
    """
    if path.exists():
        raise UserError(f"{path} is there already: name another file with --out, or delete it.")
    model = student.load()
    net: nn.Module = model if kind in FOLDED else model.net
    spec = model.card.spec
    draw = torch.rand if len(spec.shape) == 3 else torch.randn
    x = draw(TRIED, *spec.shape, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory(prefix="kdbench-export-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters about themselves
        made = Path(folder, f"student{FORMATS[kind]}")
        with exporting(model.card.name, kind):
            again = WRITERS[kind](model, made, x[:2])
            with torch.no_grad():
                want, got = net(x), again(x)
        finite = want.isfinite()
        apart = float((got - want)[finite].abs().max()) if finite.any() else 0.0
        if not torch.equal(got[~finite], want[~finite]) or apart > CLOSE * float(want[finite].abs().max()):
            raise UserError(
                f"as {kind}, {model.card.name} says something else (by {apart:.2g}): choose another --format."
            )
        with writing_to(path.parent, "--out FILE says where"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_atomic(path, made.read_bytes(), overwrite=False)
            except FileExistsError:
                raise UserError(f"{path} is there already: name another file with --out, or delete it.") from None
    return Exported(path, apart)


@contextmanager
def exporting(name: str, kind: str) -> Iterator[None]:
    """Errors of exporters as sentences."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{kind} needs {error.name}: pip install 'kdbench[export]' brings it.") from None
    except UserError:
        raise
    except Exception as error:  # of whatever an exporter has to say about a network
        raise UserError(
            f"{name} cannot be exported as {kind} ({type(error).__name__}: {first_line(error)}): choose another format."
        ) from error


def _safetensors(model: Deployed, path: Path, x: Tensor) -> Network:
    path.write_bytes(packed(model.net.state_dict(), model.card.dump().decode()))
    return Student.of(path).load().net


def _torch_export(model: Deployed, path: Path, x: Tensor) -> Network:
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={f"{FACTS}.json": model.card.dump().decode()})
    return torch.export.load(path).module()


def _onnx(model: Deployed, path: Path, x: Tensor) -> Network:
    write_onnx(model, path, x)
    import onnx

    written = onnx.load(path)
    onnx.helper.set_model_props(written, {FACTS: model.card.dump().decode()})
    onnx.save(written, path)
    return read_onnx(path)


def write_onnx(model: FromPixels, path: Path, x: Tensor) -> None:
    """Write a program for batches of any size, traced with the inputs `x` (2, ...), to `path`.

    Raises:
        ImportError: a library of the extra ``export`` is missing; others are the exporter's.
    """
    import onnx  # noqa: F401  # the exporter writes with both, and asks for them in several lines
    import onnxscript  # noqa: F401

    program = torch.onnx.export(
        model,
        (x,),
        input_names=["pixels" if len(model.mean) else "x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)


def read_onnx(path: Path, threads: int = 0) -> Network:
    """A program as ONNX Runtime runs it, on the CPU with so many threads (0: as it chooses)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch.export": ".pt2"}
"""The weights of the bare network, with its card as metadata; programs, which need no kdbench."""
FOLDED = ("onnx", "torch.export")
"""Formats that hold the normalisation too: from pixels on the scale 0..1, batches of any size, to logits."""
WRITERS: dict[str, Callable[[Deployed, Path, Tensor], Network]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torch.export": _torch_export,
}
