"""Commands that Hydra composes, and one sentence for what it says to bad input."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.paths import conf_dir

if TYPE_CHECKING:
    from kdbench.cli.outcomes import Told
    from kdbench.engine.cell import Job


EXTRAS = {f"hydra/launcher={name}": "cluster" for name in ("joblib", "submitit_local", "submitit_slurm", "ray")}
EXTRAS["hydra/sweeper=optuna"] = "search"
"""Plugins of Hydra's -> what of ours brings them."""


@dataclass
class Jobs:
    """What became of a command's jobs: what each of them told, what went wrong, whether someone put an end to it."""

    told: list[Told]
    errors: list[str]
    interrupted: bool = False


def run_jobs(name: str, task: Callable[[Job, Told], None], args: Sequence[str]) -> Jobs:
    """Run `task` on each config that Hydra composes from `args`, with all of Hydra's own flags and launchers."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from kdbench.cli.outcomes import Work, left
    from kdbench.cli.sweeps import SWEEPS, Stop

    work, errors = Work(task), []
    gave_up = interrupted = False
    SWEEPS.clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own errors reach us, to become one sentence
    overrides = [arg for arg in args if re.match(r"~|\+{0,2}[\w./@:-]+=", arg) and not arg.startswith("-")]
    flags = [arg for arg in args if arg not in overrides]  # Hydra wants all overrides in one place
    previous, sys.argv = sys.argv, [f"kdbench {name}", *overrides, *flags]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="run")(work)()
    except KeyboardInterrupt:
        interrupted = True
    except Stop as stop:
        raise stop.__cause__ or stop from None
    except Exception as error:
        if work.bug:
            raise
        composing = () if SWEEPS else (ValueError,)  # of Hydra's parser
        if isinstance(error, (HydraException, OmegaConfBaseException, *composing)):
            errors.append(config_error(error, args))
        elif SWEEPS:
            gave_up = True
            errors.append(SWEEPS[-1].why(error, left(SWEEPS[-1].folder, work.token)))
        else:
            raise
    finally:
        sys.argv = previous
    told = work.told
    for sweep in SWEEPS:
        told = left(sweep.folder, work.token)
        if interrupted:
            errors += filter(None, [sweep.queued()])
        elif told or not errors:
            errors = [*sweep.unheard(told, gave_up), *errors]
    return Jobs(told, [error for each in told for error in each.errors] + errors, interrupted)


def config_error(error: Exception, args: Sequence[str]) -> str:
    """One sentence for Hydra's several lines, with the nearest names where a choice is unknown."""
    text = str(error)
    first = text.strip().splitlines()[0].rstrip(".")
    if missing := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        group, choice = missing.groups()
        if extra := EXTRAS.get(f"{group}={choice}"):
            return f"{group}={choice} is not installed: pip install 'kdbench[{extra}]' brings it."
        return f"there is no {group} '{choice}': {nearest(choice, choices(group, args) or options_in(text))}"
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, values = ambiguous.groups()
        return f"{key}={values} is more than one value: write '{key}=[{values}]', or add -m for one job each."
    if unknown := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = unknown[1] or unknown[2]
        if key.startswith("method.") and key.count(".") > 1 and not known_settings(args, key.rsplit(".", 1)[0]):
            return (
                f"there is no setting '{key}': method '{key.split('.')[1]}' is not among those of method=[...], add it."
            )
        return f"there is no setting '{key}': {nearest(key, known_settings(args))}"
    if first.startswith("Config group override"):
        return "a group cannot be null: leave it out with ~GROUP, as in ~logger."
    return f"{first}: see kdbench run --help."


def nearest(name: str, known: Sequence[str]) -> str:
    """What to choose instead of `name`."""
    near = [other for other in known if other.endswith(f".{name}")] or difflib.get_close_matches(name, known, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known)}." if 0 < len(known) < 30 else "kdbench run --cfg job shows what there is."


def choices(group: str, args: Sequence[str]) -> list[str]:
    """The names of a config group, those of --config-dir included."""
    folders = [conf_dir(), *map(Path, (value for flag, value in pairwise(args) if flag in ("--config-dir", "-cd")))]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def options_in(text: str) -> list[str]:
    """The choices that Hydra's message lists for a group of its own."""
    return re.findall(r"^\t([\w.-]+)$", text.partition("Available options")[2].partition("Config search")[0], re.M)


def known_settings(args: Sequence[str], within: str = "") -> list[str]:
    """Dotted names of all settings (`within` a part), with those choices of `args` that are whole groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from kdbench.results.record import flatten

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            groups = [arg for arg in args if (conf_dir() / arg.partition("=")[0]).is_dir()]
            config = OmegaConf.to_container(compose("run", groups))
    except Exception:  # whatever else is wrong: this only serves a hint
        return []
    return [name for name in flatten(config) if name.startswith(within)]  # type: ignore[arg-type]
