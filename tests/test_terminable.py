"""SIGTERM ends the program at once, as an interruption that its exit code tells from Ctrl-C."""

from __future__ import annotations

import os
import signal

import pytest
from conftest import Kdbench

from kdbench.engine import run
from methods.controls.scratch import Scratch


@pytest.mark.parametrize("where", ["a step", "the record"])
def test_sigterm_ends_the_program_at_once(kd: Kdbench, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """In the middle of a batch (Lightning alone would go on to its end), and where Lightning does not look."""
    steps = []

    def signalled(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append("went on")
        raise AssertionError("went on")

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        if where == "a step":
            patch.setattr(Scratch, "losses", signalled)
        else:
            patch.setattr(run, "make_record", signalled)
        result = kd.run("method=[scratch]")
    assert (result.code, steps) == (128 + 15, [])
    assert result.err == "kdbench: interrupted; finished cells are kept, repeat the command to go on.\n"
    assert signal.getsignal(signal.SIGTERM) is before
    assert kd.run("method=[scratch]").code == 0
