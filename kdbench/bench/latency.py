"""How long a deployed student takes to answer: ``kdbench latency``.

What is timed is what users get: the network behind the normalisation of its pixels, in float32, as
`kdbench.load_student` gives it and as ``kdbench student export --format onnx`` writes it. Weights are random, since
time does not depend on them. The clock is PyTorch's (`torch.utils.benchmark`), which warms up and repeats.
"""

from __future__ import annotations

import copy
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdbench
from kdbench import shipped
from kdbench.bench.reference import synchronise
from kdbench.bench.setting import SEED, make_setting
from kdbench.compute.device import check_usable, device_name, tf32
from kdbench.compute.fast import stride_outside
from kdbench.compute.flops import macs
from kdbench.compute.route import avx512
from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset
from kdbench.data.sources import source_of
from kdbench.engine.binding import network
from kdbench.engine.export import exporting, read_onnx, write_onnx
from kdbench.engine.making import commit, parameters
from kdbench.engine.students import FromPixels
from kdbench.errors import UserError, nearest
from kdbench.report.filters import select
from kdbench.report.model import load_records
from kdbench.results.latency import WAYS, Host, Latency, Quartiles, Timing, Way
from kdbench.results.record import Record

BATCHES = (1, 64)
"""One answer as soon as it can be had, and many: the sizes of kdbench's own training, too."""
SECONDS = 0.5
"""For which each is repeated at least; then until the quartiles lie within a tenth of the median."""
LONGEST = 20
"""But for no more than so many times as long: with `SECONDS`, the 10 s that are PyTorch's own limit."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A network by name, and what it is made for; `mean` and `std` as in `FromPixels`."""

    name: str
    spec: DataSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, name: str, data: Dataset) -> Subject:
        return cls(name, data.spec, tuple(data.test.mean or data.mean), tuple(data.test.std or data.std))

    def model(self) -> FromPixels:
        """With random weights, in eval mode.

        Raises:
            UserError: no such network, or it does not fit the data.
        """
        return FromPixels(settled(network(self.name, self.spec, SEED), self.spec.shape), self.mean, self.std).eval()


def settled(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """`net` with batch norms that have seen noise, so that activations are as large as those of trained networks.

    Else those of deep networks may fall below what float32 holds, and processors are slow with such numbers.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0  # the statistics of this batch alone
        with torch.no_grad():
            net.train()(torch.randn(BATCHES[-1], *shape, generator=torch.Generator().manual_seed(SEED)))
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
    return net


def chosen(names: Sequence[str] | None, pair: str | None, dataset: str | None) -> list[Subject]:
    """Networks by name, or those of a pair, for a data set; by default what ``conf/bench.yaml`` says.

    Raises:
        UserError: no such pair or data set, it is not prepared, or a network does not fit it.
    """
    setting, _ = make_setting(pair, None)
    if dataset is not None and dataset not in (known := shipped.names("dataset")):
        raise UserError(f"there is no data set '{dataset}': {nearest(dataset, known)}")
    data = source_of(shipped.composed("dataset", dataset)).build() if dataset is not None else setting.dataset
    found = [Subject.of(name, data) for name in dict.fromkeys(names or (setting.teacher, setting.student))]
    for subject in found:
        subject.model()  # what does not fit is told before anything is measured
    return found


def students(store: Path, dataset: str | None, note: Say) -> list[Subject]:
    """The students of a store's records, of all data sets or of one, each once.

    Args:
        note: is told which cannot be made here, and why.

    Raises:
        UserError: the store is empty or bad, or has no records on that data set.
    """
    firsts: dict[tuple[str, int, int], Record] = {}
    for record in select(load_records(store), {} if dataset is None else {"dataset": dataset}):
        firsts.setdefault((record.cell.student, record.cost.student_params, record.cost.student_macs), record)
    found = []
    for (name, known, operations), record in sorted(firsts.items()):
        try:
            subject = Subject.of(name, source_of(record.drawn).build())
            net = subject.model().net
        except UserError as error:
            note(f"{name} on {record.cell.dataset}, as {error}")
            continue
        if (parameters(net), macs(net, subject.spec.shape)) == (known, operations):
            found.append(subject)
        else:
            note(
                f"what {record.cell.method} deploys on {record.cell.dataset}, as it is more than a {name} "
                f"({known:,} parameters), and only the method knows how to make it."
            )
    return found


def devices(kind: str | None) -> list[torch.device]:
    """The processor and the GPU where there is one, or that of the two which is asked for.

    Raises:
        UserError: there is no GPU, or it cannot be used.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use here: leave --device cuda out, or choose --device cpu.")
    found = [torch.device("cpu")] if kind != "cuda" else []
    if kind != "cpu" and torch.cuda.is_available():
        found.append(torch.device("cuda", torch.cuda.current_device()))
        check_usable(found[-1])
    return found


# ---- ways to answer -------------------------------------------------------------------------------------------------

Answer = Callable[[Tensor], Any]


def ways(shape: Sequence[int], device: torch.device) -> list[Way]:
    """In which ways it is measured: only images have channels, and what is exported runs on the CPU."""
    without = {"channels-last"} if len(shape) != 3 else set()
    return [way for way in WAYS if way not in without | ({"onnx"} if device.type != "cpu" else set())]


def prepared(way: Way, name: str, model: FromPixels, x: Tensor, folder: Path) -> Callable[[int | None], Answer]:
    """A model in a way; what is returned takes a number of threads. `x` are some inputs, `folder` is for files.

    Raises:
        UserError: it cannot be exported, or the extra that this needs is not there.
    """
    if way == "onnx":
        path = folder / "student.onnx"
        with exporting(name, way), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            write_onnx(model, path, x)
            read_onnx(path)
        return lambda threads: read_onnx(path, threads or 0)
    if way == "channels-last":
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        if not avx512():
            stride_outside(model)
    return lambda threads: model


def measure(subject: Subject, device: torch.device, seconds: float, say: Say, note: Say) -> list[Latency]:
    """A network on a device, in each way.

    Args:
        seconds: see `SECONDS`.
        say: is told what is being done.
        note: is told which way is left out, and why.
    """
    model, shape = subject.model(), subject.spec.shape
    counted, operations = parameters(model.net), macs(model.net, shape)
    inputs = [torch.rand(batch, *shape, generator=torch.Generator().manual_seed(SEED)).to(device) for batch in BATCHES]
    model.to(device)
    found = []
    for way in ways(shape, device):
        say(f"{subject.name} on {subject.spec.name}: {way} on {device.type}")
        with tempfile.TemporaryDirectory(prefix="kdbench-latency-") as folder:
            try:
                make = prepared(way, subject.name, model, inputs[-1][:2], Path(folder))
            except UserError as error:
                note(f"{way} of {subject.name} on {subject.spec.name}, as {error}")
                continue
            here = host(device, way)
            timings = [
                Timing(batch=len(x), threads=threads, ms=timed(make(threads), laid(way, x), threads, seconds))
                for threads in numbers_of_threads(device)
                for x in inputs
            ]
        found.append(
            Latency(
                created=datetime.now(timezone.utc).replace(microsecond=0),
                network=subject.name,
                shape=shape,
                outputs=subject.spec.num_classes,
                parameters=counted,
                macs=operations,
                way=way,
                host=here,
                timings=timings,
            )
        )
    return found


def laid(way: Way, x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if way == "channels-last" else x


def numbers_of_threads(device: torch.device) -> list[int | None]:
    """On a CPU one, and as many as PyTorch has."""
    return [None] if device.type == "cuda" else [*sorted({1, torch.get_num_threads()})]


def timed(answer: Answer, x: Tensor, threads: int | None, seconds: float) -> Quartiles:
    """Milliseconds until there is an answer to `x`."""
    from torch.utils.benchmark import Timer  # which may warn of a machine without a GPU, also where nothing is timed

    def ask() -> None:
        answer(x)
        synchronise(x.device)  # else a GPU would be given the next batch before it has answered

    timer = Timer("ask()", globals={"ask": ask}, num_threads=threads or torch.get_num_threads())
    with torch.inference_mode(), tf32(False):
        took = timer.adaptive_autorange(min_run_time=seconds, max_run_time=LONGEST * seconds)
    return Quartiles.of([1000 * time for time in took.times])


def host(device: torch.device, way: Way) -> Host:
    versions = {"torch": torch.__version__}
    if way == "onnx":
        import onnxruntime

        versions["onnxruntime"] = onnxruntime.__version__
    return Host(
        device=device_name(device),
        processors=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        platform=platform.platform(),
        versions={"python": platform.python_version(), "kdbench": kdbench.__version__, **versions},
        commit=commit(),
    )
