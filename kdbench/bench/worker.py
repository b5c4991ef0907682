"""A process of its own for what must not share one with the engine.

The reference loop, because the engine keeps freed memory, which would make the reference faster too; and peak memory,
because a process never forgets its highest. Started as ``python -m kdbench.bench.worker SETTING``; commands and answers
are lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.bench.setting import Setting
from kdbench.errors import UserError

if TYPE_CHECKING:
    from kdbench.bench.reference import Reference


class Worker:
    """The other end: start, ask, close."""

    def __init__(self, setting: Setting) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdbench.bench.worker", setting.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def ask(self, **command: Any) -> float:
        """The answer to one command; see `answer`.

        Raises:
            UserError: the process failed.
        """
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise UserError("a process of the benchmark ended early: see above, or free some memory and repeat.")
        return float(json.loads(line))

    def close(self) -> None:
        """End the process, and wait for it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.process.terminate()  # nobody waits for its answer any more
        self.close()


class Answers:
    """What a worker can do."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.references: dict[str, Reference] = {}

    def reference(self, method: str, steps: int) -> float:
        """Seconds per step of a method in the reference loop."""
        from kdbench.bench.reference import Reference

        if method not in self.references:
            self.references[method] = Reference(self.setting, method)
        return self.references[method].turn(steps)

    def peak(self, methods: list[str], steps: int) -> float:
        """Peak memory (MB) of these methods in lockstep, of this whole process or of the GPU's allocator."""
        from kdbench.bench.contender import Engine, frozen_teacher, route_of
        from kdbench.engine.fit import peak_memory_mb

        route = route_of(self.setting, cached=False, compiled=True)
        taught = any(map(self.setting.taught, methods))
        with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as temporary:
            folder = Path(temporary)
            teacher = frozen_teacher(self.setting, route, folder) if taught else None
            Engine(self.setting, methods, "32-true", route, teacher, folder).turn(steps)
        return peak_memory_mb(self.setting.device)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this process, and will end it
    answers = Answers(Setting.from_json(sys.argv[1]))
    pipe, sys.stdout = sys.stdout, sys.stderr  # whatever is printed must not look like an answer
    for line in sys.stdin:
        command = json.loads(line)
        number = getattr(answers, command.pop("what"))(**command)
        print(json.dumps(number), file=pipe, flush=True)


if __name__ == "__main__":
    main()
