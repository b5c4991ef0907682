"""Students as files for other programs, each tried against the network before it is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from kdbench.engine.students import FACTS, Deployed, Student, packed
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
        try:
            again = WRITERS[kind](model, made, x[:2])
            with torch.no_grad():
                want, got = net(x), again(x)
        except ImportError as error:
            raise UserError(f"{kind} needs {error.name}: pip install 'kdbench[export]' brings it.") from None
        except UserError:
            raise
        except Exception as error:  # of whatever an exporter has to say about a network
            raise UserError(
                f"{model.card.name} cannot be exported as {kind} ({type(error).__name__}: {first_line(error)}): choose "
                "another --format."
            ) from error
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


def _safetensors(model: Deployed, path: Path, x: Tensor) -> Network:
    path.write_bytes(packed(model.net.state_dict(), model.card.dump().decode()))
    return Student.of(path).load().net


def _torch_export(model: Deployed, path: Path, x: Tensor) -> Network:
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={f"{FACTS}.json": model.card.dump().decode()})
    return torch.export.load(path).module()


def _onnx(model: Deployed, path: Path, x: Tensor) -> Network:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  # which torch.onnx writes with, and asks for in several lines

    program = torch.onnx.export(
        model,
        (x,),
        input_names=["pixels" if model.card.mean else "x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)
    written = onnx.load(path)
    onnx.helper.set_model_props(written, {FACTS: model.card.dump().decode()})
    onnx.save(written, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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
