"""Errors that the command line prints as one sentence, without a traceback."""

import re


class UserError(Exception):
    """A mistake of the user's, told in one sentence that names the mend."""


class DoesNotFit(UserError):
    """A method cannot serve this pair or data set: a grid leaves the cell out and says why."""


class Diverged(Exception):
    """A loss term became NaN or infinite; the cell is kept with status ``diverged``."""

    def __init__(self, term: str, epoch: int) -> None:
        super().__init__(f"the loss term '{term}' was not finite in epoch {epoch + 1}")
        self.term, self.epoch = term, epoch


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while a cell trains; the cell stays resumable. Like its base it passes ``except Exception``."""


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left, on whatever device; torch says so only in words."""
    return isinstance(error, MemoryError) or bool(re.search("can't allocate memory|out of memory", str(error)))
