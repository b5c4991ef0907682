"""Logs: the curves of each cell as it trains, in CSV files, TensorBoard, W&B or another of Lightning's loggers.

A log is a copy of the curves, one row per epoch. A cell that goes on after a kill may have logged epochs after its
checkpoint, and not all before it: files are written anew from its curves, and a run on a server goes on after the last
epoch that it has. Nothing that befalls a log harms its cell.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from kdbench.errors import UserError
from kdbench.targets import first_line

Curves = Mapping[str, Sequence[float | None]]

OURS = ("name", "version", "id")
"""What tells one cell's log from another's, and so is no setting."""


class Log:
    """The log of one cell.

    Args:
        curves: name -> one value per epoch, None where it was not measured; they grow while the cell trains.
        written: epochs that the log has already.
        lost: told what became of the log when it cannot be written.
    """

    def __init__(self, logger: Logger, curves: Curves, written: int, lost: Callable[[Exception], None]) -> None:
        self._logger: Logger | None = logger
        self._curves, self._written, self._lost = curves, written, lost

    def write(self, epochs: int) -> None:
        """Write those of the first `epochs` epochs that are not written yet."""
        with self._spared():
            for epoch in range(self._written, epochs):
                row = {name: curve[epoch] for name, curve in self._curves.items() if epoch < len(curve)}
                numbers = {name: value for name, value in row.items() if value is not None}
                if self._logger and numbers:
                    self._logger.log_metrics({**numbers, "epoch": epoch}, step=epoch)
            self._written = max(self._written, epochs)
            if self._logger:
                self._logger.save()

    def close(self) -> None:
        """Write what is left."""
        self.write(max(map(len, self._curves.values()), default=0))
        with self._spared():
            if self._logger:
                self._logger.finalize("success")
                run = getattr(self._logger, "experiment", None)
                finish = getattr(run, "finish", None)  # or W&B would hold the run open
                if callable(finish):
                    finish()

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Without harm to the cell: a log that cannot be written is given up."""
        try:
            yield
        except Exception as error:
            self._logger = None
            self._lost(error)


@dataclass
class Logs:
    """The logs of all cells.

    Attributes:
        settings: of one of Lightning's loggers, ``_target_`` included; None for no logs.
        say: tells the user a sentence.
    """

    settings: Mapping[str, Any] | None
    say: Callable[[str], None]
    _told: set[str] = field(default_factory=set)
    _unreachable: bool = False

    def check(self) -> None:
        """Raises `UserError` if there is no such logger, or it takes no such settings."""
        if self.settings is None:
            return
        given = {key for key in self.settings if not key.startswith("_")}
        if named := given & set(OURS):
            raise UserError(f"logger.{min(named)}: a log is named after its cell; leave that setting out.")
        try:
            cls = pkgutil.resolve_name(str(self.settings.get("_target_")))
        except Exception as error:
            raise UserError(
                f"logger: {self.settings.get('_target_')} cannot be imported ({first_line(error)}); correct "
                "logger._target_, or choose from csv, tensorboard and wandb."
            ) from None
        if not isinstance(cls, type) or not issubclass(cls, Logger):
            raise UserError(
                f"logger: {self.settings['_target_']} is none of Lightning's loggers: correct logger._target_, or "
                "choose from csv, tensorboard and wandb."
            )
        takers = [cls.__init__, *_forwards_to(cls)]
        known = {name for taker in takers for name in _parameters(taker)}
        unknown = given - known
        if unknown and not _takes_any(takers[-1]):
            raise UserError(
                f"there is no setting 'logger.{min(unknown)}': {cls.__name__} takes "
                f"{', '.join(sorted(known - {'self', *OURS}))}."
            )
        try:
            self._make("check", "check", begun=False)
        except Exception as error:
            raise UserError(f"logger: {_why(error)}; mend its settings (logger.*) or leave it out (~logger).") from None

    @contextmanager
    def of(self, title: str, version: str, config: Mapping[str, Any], curves: Curves) -> Iterator[Log | None]:
        """The log of a cell or teacher, closed behind it: an open one would swallow the next one's values.

        Args:
            version: tells it from all others; a W&B run of that id is resumed.
            config: its hyper-parameters.
            curves: as they stand now; not empty if it goes on where it was killed.
        """
        log = self._open(title, version, config, curves)
        try:
            yield log
        finally:
            if log:
                log.close()

    def _open(self, title: str, version: str, config: Mapping[str, Any], curves: Curves) -> Log | None:
        if self.settings is None or self._unreachable:
            return None
        try:
            logger = self._make(re.sub(r"[^A-Za-z0-9._-]+", "-", title)[:100], version, begun=bool(curves))
            for folder in _former(logger, version):
                shutil.rmtree(folder, ignore_errors=True)  # W&B's service may outlive a killed process a little
            logger.log_hyperparams(dict(config))
            return Log(logger, curves, _known(logger), self._lost)
        except Exception as error:  # no key, no network: not again for every cell
            self._unreachable = True
            self._lost(error)
            return None

    def _make(self, name: str, version: str, *, begun: bool) -> Logger:
        settings = dict(self.settings or {})
        cls = pkgutil.resolve_name(settings["_target_"])
        known = _parameters(cls.__init__)
        ours: dict[str, Any] = {"name": name, "version": version, "run_name": name}
        more = {key: value for key, value in ours.items() if key in known}
        if issubclass(cls, WandbLogger):
            # members of a cohort log at the same time; a cell that starts anew starts its run anew
            more |= {"reinit": "create_new", "resume": "allow" if begun else None}
            more["settings"] = {"console": "off", **(settings.pop("settings", None) or {})}
        return hydra.utils.instantiate(settings, **more)

    def _lost(self, error: Exception) -> None:
        online = (self.settings or {}).get("offline") is False
        sentence = (
            f"the log cannot be written ({_why(error)}), so the cells go on without it: "
            f"{'logger.offline=true keeps it in files, ' if online else ''}~logger asks for none."
        )
        if sentence not in self._told:
            self._told.add(sentence)
            self.say(sentence)


def _why(error: Exception) -> str:
    """What Hydra wraps, in one line."""
    return first_line(error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error)


def _parameters(function: Callable[..., Any]) -> list[str]:
    """Names that may be given."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(each.kind == each.VAR_KEYWORD for each in inspect.signature(function).parameters.values())


def _forwards_to(cls: type[Logger]) -> list[Callable[..., Any]]:
    """What takes the settings that a logger does not know itself."""
    if issubclass(cls, WandbLogger):
        import wandb

        return [wandb.init]
    if issubclass(cls, TensorBoardLogger):
        from torch.utils.tensorboard import SummaryWriter

        return [SummaryWriter.__init__]
    return []


def _former(logger: Logger, version: str) -> list[Path]:
    """Folders that an earlier sitting of the same cell left."""
    folder = Path(str(getattr(logger, "log_dir", "")))
    found = [folder] if version in folder.parts else []
    if isinstance(logger, WandbLogger):
        found = list(Path(logger.save_dir or ".", "wandb").glob(f"offline-run-*-{version}"))
    return [folder for folder in found if folder.is_dir()]


def _known(logger: Logger) -> int:
    """Epochs that a resumed run has already; 0 for one that begins."""
    run: Any = getattr(logger, "experiment", None)
    return int(run.summary.get("epoch", -1)) + 1 if getattr(run, "resumed", False) is True else 0
