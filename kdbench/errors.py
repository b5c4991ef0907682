"""Errors that the command line prints as one sentence, without a traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """A mistake of the user's, told in one sentence that names the mend."""


class Unreadable(UserError):
    """What the system did not let us read: that is no sign of damage, so nothing of it is to be deleted."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        if isinstance(error, PermissionError):
            super().__init__(f"you may not read {path}: ask its owner for the permission, or use a copy of your own.")
        else:
            super().__init__(f"cannot read {path} ({error.strerror or error}): see to that disk, then try again.")


class DoesNotFit(UserError):
    """A method cannot serve this pair or data set: a grid leaves the cell out and says why."""


class Diverged(Exception):
    """A loss term became NaN or infinite; the cell is kept with status ``diverged``."""

    def __init__(self, term: str, epoch: int, step: int, cause: str) -> None:
        """Epoch and step count from 0; the cause says what is to be mended."""
        super().__init__(
            f"the loss term '{term}' was not finite in epoch {epoch + 1}, from step {step + 1} on; {cause}"
        )
        self.term, self.epoch = term, epoch


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while a cell trains; the cell stays resumable. Like its base it passes ``except Exception``."""


def nearest(name: str, known: Sequence[str], where: str = "kdbench run --cfg job shows what there is.") -> str:
    """What to choose instead of `name`, as the end of a sentence; `where` says what shows all, if they are many."""
    near = [other for other in known if other.endswith(f".{name}")] or difflib.get_close_matches(name, known, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known)}." if 0 < len(known) < 30 else where


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left, on whatever device; torch says so only in words."""
    return isinstance(error, MemoryError) or bool(re.search("can't allocate memory|out of memory", str(error)))
