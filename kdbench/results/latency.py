"""What ``kdbench latency`` measured: one file, ``latency.json``, with the latest of each device, network and way.

It belongs to an architecture, a shape of input and a device; whatever the weights are, and so to no record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, get_args

import numpy as np
from pydantic import AwareDatetime, Field

from kdbench.results.latest import Amount, Count, Entry, Latest, Strict, rounded

FILE: Final = "latency.json"

Way = Literal["eager", "channels-last", "onnx"]
"""How a network answers: as `kdbench.load_student` gives it; the same with weights and images in the memory format that
the fast kernels of convolutions want; as it is exported, in ONNX Runtime on the CPU, which folds batch norms by itself.
"""
WAYS: Final[tuple[Way, ...]] = get_args(Way)


class Quartiles(Strict):
    """Median, and the quartiles below and above it."""

    median: Amount
    low: Amount
    high: Amount

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        low, median, high = (rounded(float(value)) for value in np.quantile(values, (0.25, 0.5, 0.75)))
        return cls(median=median, low=low, high=high)


class Timing(Strict):
    """One size of batch.

    Attributes:
        threads: that one answer may use; None on a GPU.
        ms: milliseconds from a batch in the device's memory to its logits.
    """

    batch: Count
    threads: Count | None
    ms: Quartiles

    @property
    def throughput(self) -> Quartiles:
        """Inputs per second."""
        speed = (rounded(1000 * self.batch / max(ms, 1e-9)) for ms in (self.ms.median, self.ms.high, self.ms.low))
        return Quartiles(**dict(zip(("median", "low", "high"), speed, strict=True)))


class Host(Strict):
    """Where and with what it was measured.

    Attributes:
        device: model name of the processor or GPU.
        load: the system's load average over the last minute when it began, None where there is none.
        versions: of Python and the libraries that compute, by name.
        commit: of kdbench, where it is known.
    """

    device: str
    processors: Count
    load: Amount | None
    platform: str
    versions: dict[str, str]
    commit: str | None


class Latency(Entry):
    """One way to have one network answer.

    Attributes:
        shape: of one input, (C, H, W) or (n,).
        outputs: how many logits it has, of a map in each place.
        parameters, macs: of the network; multiply-accumulates for one input. With its name they tell which students
            of a store it is.
    """

    created: AwareDatetime
    network: str
    shape: tuple[Count, ...]
    outputs: Count
    parameters: Count
    macs: Annotated[int, Field(ge=0)]
    way: Way
    host: Host
    timings: list[Timing]

    @property
    def key(self) -> tuple[str, str, tuple[int, ...], int, str]:
        return self.host.device, self.network, self.shape, self.outputs, self.way


KEPT: Final = Latest(Latency, "kdbench latency")
