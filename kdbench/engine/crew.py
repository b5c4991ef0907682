"""A crew: one cell on several devices of a machine, each with a process of its own.

The process that was there before leads: it holds locks, evaluates, and writes checkpoints, logs and record. The others
are started for one training (`kdbench.engine.follower`), build the same method from the same cell, are handed its
state, and follow. Each trains on its share of every batch (`kdbench.data.batch.Share`), and all of them together
compute what one device would have computed on the whole batch:

* a term is the mean over all shares, and its gradient that of the share's part in it (`Crew.terms`);
* before a player steps, its gradients are summed over the crew (`Crew.gradients`), so that all take the same step;
* batch norm in training takes the statistics of the whole batch (`BatchNormOfAll`).

That is the same record up to rounding for most methods, and at the first batch of each stage it is tried for which
(`kdbench.engine.trial`). At the end of each epoch the processes compare their states, before a checkpoint is written
(`Crew.agree`).

Nothing here is global to a process, as ``torch.distributed.init_process_group`` would be: metrics that find such a
group wait for processes that do not evaluate.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from kdbench.compute.batch_norm import BatchNormOfAll
from kdbench.data.batch import Batch, DataSpec
from kdbench.engine import trial
from kdbench.errors import DoesNotFit, UserError
from kdbench.files import writing_to
from kdbench.method import Method
from kdbench.paths import CHOOSE_WORK
from kdbench.protocol import Protocol

if TYPE_CHECKING:
    from kdbench.engine.cohort import Member

LOCAL = "127.0.0.1"
"""Where the processes of a crew meet: nobody else reaches them there."""
PATIENCE = timedelta(hours=6)
"""How long one waits for the others, who may be evaluating meanwhile. That one is dead is noticed at once."""
GRACE, PAUSE = 10.0, 0.005
"""Seconds that a process is given to end by itself, and between two looks at something that is waited for."""
TRIED = 8
"""Samples of each share, at most, on which it is tried whether a method may be trained in shares."""
COUNTS = ("images_seen", "taken", "student", "teacher")
"""What a method counts: images, and those passed through networks."""


# ---- what may be trained so -------------------------------------------------------------------------------------


def check_batches(protocol: Protocol, data: DataSpec, size: int) -> None:
    """Raises `UserError` if some batch has fewer samples than there are devices, or their precision ties steps."""
    if protocol.precision == "16-mixed":
        raise UserError(
            "protocol.precision=16-mixed scales gradients in each process by itself: take bf16-mixed, or one device "
            "(trainer.devices=1)."
        )
    for n in map(data.epoch_size, range(len(data.experiences) or 1)):
        whole, rest = divmod(n, protocol.batch_size)
        least = protocol.batch_size if whole and (protocol.drop_last or not rest) else rest
        if least < size:
            raise UserError(
                f"the last batch of {n} images in batches of {protocol.batch_size} has {least}, fewer than {size} "
                "devices: leave it out (protocol.drop_last=true), take another protocol.batch_size, or train on one "
                "device (trainer.devices=1)."
            )


def check_streams(method: Method, data: DataSpec) -> None:
    """Raises `DoesNotFit` if the method asks for samples beside the batch, of which there may be another number."""
    if own := sorted(method.needs & data.beside.keys()):
        raise DoesNotFit(
            f"several devices share each batch, not what lies beside it, and {type(method).__name__} needs "
            f"'{own[0]}': train it on one device (trainer.devices=1)."
        )


# ---- the processes ----------------------------------------------------------------------------------------------


@contextmanager
def lead(orders: Sequence[Mapping[str, Any]], folder: Path, device: torch.device) -> Iterator[Crew]:
    """Start the other processes of a crew, one for each of `orders` (see `kdbench.engine.follower`), and end them.

    Args:
        folder: what they print is kept there.

    Raises:
        UserError: one of them failed.
    """
    meeting = Meeting(0, len(orders) + 1)
    with _sharing_cores(meeting.size) as threads:
        try:
            for rank, order in enumerate(orders, start=1):
                place = {"rank": rank, "size": meeting.size, "port": meeting.port}
                log = folder / f"device{rank + 1}.log"
                process = _start({**order, **place, "parent": os.getpid(), "threads": threads}, log)
                meeting.others.append((process, log))
            crew = Crew(meeting, device)
            with crew.watched():
                yield crew
            for process, _ in meeting.others:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        finally:
            for process, _ in meeting.others:
                _end(process)
            meeting.close()


def _start(order: Mapping[str, Any], log: Path) -> subprocess.Popen[str]:
    # what can be imported here can be imported there, and nothing else
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    env = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "kdbench.engine.follower"]
    with writing_to(log.parent, CHOOSE_WORK), log.open("w", encoding="utf-8") as printed:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=env,
            text=True,
            start_new_session=True,  # Ctrl-C is for the one that leads
        )
    assert process.stdin
    with suppress(OSError):  # it is gone already, which is noticed where it is waited for
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.close()
    return process


def _end(process: subprocess.Popen[str]) -> None:
    """At once, with the processes that read images for it."""
    if process.poll() == 0:
        return
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:  # Windows
            process.kill()
    process.wait()


@contextmanager
def _sharing_cores(size: int) -> Iterator[int]:
    """Meanwhile each process of a crew uses its part of the cores that this one uses: that many."""
    before = torch.get_num_threads()
    threads = max(1, before // size)
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)


class Meeting:
    """Where the processes of a crew tell each other what is no tensor, as one of them sees it.

    Attributes:
        rank: which of them it is; 0 leads.
        size: how many there are.
        port: where they meet.
        store: what lies there, for all.
        others: to the one that leads, the others, with the file that each prints to.

    Args:
        port: None for the one that leads.
    """

    def __init__(self, rank: int, size: int, port: int | None = None) -> None:
        self.rank, self.size, self._rounds = rank, size, 0
        self.others: list[tuple[subprocess.Popen[str], Path]] = []
        if port is None:
            listening = socket.create_server((LOCAL, 0))
            self.port: int = listening.getsockname()[1]
            opened: Any = {"is_master": True, "wait_for_workers": False, "master_listen_fd": listening.detach()}
            self.store = distributed.TCPStore(LOCAL, self.port, **opened)
        else:
            self.port, self.store = port, distributed.TCPStore(LOCAL, port)

    def close(self) -> None:
        """Nobody meets here any more."""
        del self.store  # and with it ends the thread that serves it

    def told(self, value: Any) -> list[Any]:
        """What each process says, in the order of ranks: anything that JSON can hold."""
        now, before = f"round {self._rounds}", f"round {self._rounds - 2}"
        self._rounds += 1
        self.store.set(f"{now} of {self.rank}", json.dumps(value))
        said = [json.loads(self._awaited(f"{now} of {rank}")) for rank in range(self.size)]
        self.store.delete_key(f"{before} of {self.rank}")  # who is in this round has read it
        return said

    def _awaited(self, key: str) -> bytes:
        until = time.monotonic() + PATIENCE.total_seconds()
        while not self.store.check([key]):
            if any(process.poll() for process, _ in self.others) or time.monotonic() > until:
                raise self.lost()
            time.sleep(PAUSE)
        return self.store.get(key)

    def fail(self, sentence: str) -> None:
        """Leave word, for the one that leads, of why this process ends."""
        with suppress(RuntimeError):  # it has ended before
            self.store.set(f"{self.rank} failed", sentence)

    def lost(self) -> UserError:
        """Why somebody of the crew does not answer."""
        until = time.monotonic() + GRACE
        while self.others and time.monotonic() < until:
            for rank, (process, log) in enumerate(self.others, start=1):
                who = f"the process of device {rank + 1} of {self.size}"
                ended = process.poll()
                if self.store.check([f"{rank} failed"]):
                    return UserError(f"{who} failed: {self.store.get(f'{rank} failed').decode()}")
                if ended:
                    how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
                    return UserError(
                        f"{who} ended without a word ({how}; what it printed is in {log}), perhaps for want of memory: "
                        "repeat the command, and it goes on from its last checkpoint."
                    )
            time.sleep(PAUSE)
        return UserError("a process of its crew does not answer: repeat the command, or train it on one device.")


class Crew:
    """The processes that train one cell, as one of them sees it.

    Attributes:
        rank: which of them it is; 0 leads.
        size: how many there are.

    Args:
        meeting: where they meet; all wait here until the last has come.
        device: where this one computes.
    """

    def __init__(self, meeting: Meeting, device: torch.device) -> None:
        self.rank, self.size, self.told, self.device = meeting.rank, meeting.size, meeting.told, device
        self._meeting = meeting
        self._entry: int | None = None  # of the plan, which was begun last
        self._tried: set[int] = set()  # entries of the plan
        self._counted = dict.fromkeys(COUNTS, 0)
        self.told("here")  # who fails before can say so; who makes a group waits for all without looking
        store = meeting.store
        if device.type == "cuda":
            nccl = distributed.ProcessGroupNCCL.Options()
            nccl._timeout = PATIENCE
            self._group: Any = distributed.ProcessGroupNCCL(store, self.rank, self.size, nccl)
        else:
            backend: Any = distributed.ProcessGroupGloo
            gloo = backend._Options()
            gloo._devices = [backend.create_device(hostname=LOCAL)]
            gloo._timeout, gloo._threads = PATIENCE, 2
            self._group = backend(store, self.rank, self.size, gloo)

    def add(self, tensor: Tensor) -> None:
        """Sum a contiguous tensor over the crew, in place; all get the same bits."""
        self._done(lambda: self._group.allreduce([tensor]))

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all, (n, ...), each process with as many, in the order of ranks: (size * n, ...)."""
        found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.size)]
        if rows.numel():
            self._done(lambda: self._group.allgather([found], [rows.contiguous()]))
        return torch.cat(found)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Meanwhile, whoever of the others fails is not waited for; afterwards the crew is over."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                if any(process.poll() for process, _ in self._meeting.others):
                    self._abort()
                    return

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()
            self._abort()
            self._group = None  # its threads end with it

    def _abort(self) -> None:
        if self.device.type == "cuda":  # a GPU would wait for ever; elsewhere a closed connection is noticed
            self._group.abort()

    def hand(self, member: Member) -> None:
        """Have the member of every process stand where that of the one that leads does."""
        content = io.BytesIO()
        if self.rank == 0:
            torch.save(member.state(), content)
        length, *_ = self.told(content.getbuffer().nbytes)
        state = torch.zeros(length, dtype=torch.uint8)
        if self.rank == 0:
            state = torch.frombuffer(content.getbuffer(), dtype=torch.uint8)
        state = state.to(self.device)
        self._done(lambda: self._group.broadcast([state]))
        if self.rank:
            member.load(torch.load(io.BytesIO(state.cpu().numpy().tobytes()), map_location="cpu", weights_only=True))

    def _done(self, begin: Callable[[], Any]) -> None:
        try:
            begin().wait()
        except RuntimeError as error:
            raise self._meeting.lost() from error

    # ---- a step -------------------------------------------------------------------------------------------------

    def terms(self, terms: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
        """Means over a share as means over the batch; their gradients remain those of the share's part in them.

        Args:
            samples: of the share.
        """
        values = torch.stack([value if value.dtype.itemsize > 2 else value.float() for value in terms.values()])
        return dict(zip(terms, _Mean.apply(values, samples, self).unbind(), strict=True))

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over the crew; who has none here has none anywhere."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._flat([torch.zeros_like(p) if p.grad is None else p.grad for p in trained], self.add)

    def begun(self, method: Method) -> None:
        """What a stage began with is that of the one that leads: on each device it may have been rounded otherwise."""
        if self._entry != method._position:
            self._entry = method._position
            self._flat(list(_tensors(method).values()), lambda flat: self._done(lambda: self._group.broadcast([flat])))

    def _flat(self, tensors: Sequence[Tensor], change: Callable[[Tensor], None]) -> None:
        """Change tensors in place, all of a type at once."""
        with torch.no_grad():
            for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
                some = [tensor for tensor in tensors if tensor.dtype == dtype]
                flat = torch.cat([tensor.reshape(-1) for tensor in some])
                change(flat)
                for tensor, part in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def step(self, method: Method, batch: Batch, batch_idx: int) -> None:
        """A training step of the crew on its shares of a batch, which is tried before at the first of each stage.

        Raises:
            DoesNotFit: the method is another one in shares.
        """
        if method._position not in self._tried:
            self._tried.add(method._position)
            self._try(method, batch, batch_idx)
        before = _counts(method)
        with BatchNormOfAll(self.add):
            method.training_step(batch, batch_idx)
        for name, count in _counts(method).items():
            self._counted[name] += count - before[name]

    def _try(self, method: Method, batch: Batch, batch_idx: int) -> None:
        # so few that the whole takes no more memory than a share, also in float64
        few = max(1, min(TRIED, min(self.told(len(batch))) // (2 * self.size)))
        share = batch.each(lambda rows: rows[:few])
        whole = share.each(self.gathered)
        with BatchNormOfAll(self.add):
            shared = trial.step(self, method, share, batch_idx)
        alone = trial.step(None, method, whole, batch_idx)
        if found := next(filter(None, self.told(trial.compare(shared, alone, method))), None):
            raise DoesNotFit(
                f"{type(method).__name__} is another method where {self.size} devices share each batch ({found} "
                f"differs on {len(whole)} samples): it compares them, keeps some, draws random numbers for each or "
                "averages over something else; train it on one device (trainer.devices=1)."
            )

    # ---- an epoch -----------------------------------------------------------------------------------------------

    def agree(self, method: Method) -> None:
        """At the end of an epoch: count what all have done, and see that all are where one would be.

        Raises:
            UserError: they are not.
        """
        digests = {name: _digest(tensor) for name, tensor in _tensors(method).items()}
        said = self.told({"counted": self._counted, "digests": digests})
        for name in digests:
            if len({each["digests"].get(name) for each in said}) > 1:
                raise UserError(
                    f"the devices disagree about '{name}' after epoch {method.epoch + 1}, so the last checkpoint is "
                    "what there is: repeat the command, and if they disagree again, with trainer.devices=1."
                )
        others = [each["counted"] for rank, each in enumerate(said) if rank != self.rank]
        for counted in others:
            method.images_seen += counted["images_seen"]
            method.taken += counted["taken"]
            for who in method.forwards:
                method.forwards[who] += counted[who]
        self._counted = dict.fromkeys(COUNTS, 0)


class _Mean(torch.autograd.Function):
    """The mean over a batch, of means over its shares, (n,)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, samples: int, crew: Crew) -> Tensor:
        sums = torch.cat([values.double() * samples, values.new_full((1,), samples, dtype=torch.float64)])
        crew.add(sums)
        ctx.share = samples / sums[-1]
        return (sums[:-1] / sums[-1]).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.share.to(gradient.dtype), None, None


def _counts(method: Method) -> dict[str, int]:
    return dict(zip(COUNTS, (method.images_seen, method.taken, *method.forwards.values()), strict=True))


def _tensors(method: Method) -> dict[str, Tensor]:
    """What all processes have in common: the method's state, but for the meters, as one alone evaluates."""
    return {name: value for name, value in method.state_dict().items() if not name.startswith("meters.")}


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, digest_size=8).hexdigest()
