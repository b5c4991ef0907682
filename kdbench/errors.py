"""Errors that the command line prints as one sentence, without a traceback."""


class UserError(Exception):
    """A mistake of the user's, told in one sentence that names the mend."""


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
