"""Tours: sweeps over experiments, by which a user sees every family of the survey (``conf/tour``).

The command line's own ``experiment=`` cannot be swept by a config, so a tour is a group that names the experiments for
Hydra's sweeper; everything else about it is a sweep as any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict, read_write

from kdbench.cli.chosen import leave_the_chosen
from kdbench.data.arrays import prepared
from kdbench.data.sources import source_of
from kdbench.engine.cell import cells_of
from kdbench.engine.job import Job
from kdbench.errors import UserError
from kdbench.results.record import canonical_json

KEY = "experiment"


def check_tour(args: Sequence[str]) -> None:
    """Raises `UserError` if a tour is asked for beside what it decides itself."""
    given = dict(arg.lstrip("+").partition("=")[::2] for arg in args if re.match(r"\+{0,2}(tour|experiment)=", arg))
    tour = given.get("tour", "null")
    if tour == "null":
        return
    if "," in tour:
        raise UserError(f"tour={tour} is more than one: take one tour at a time.")
    if KEY in given:
        raise UserError(f"tour={tour} goes over experiments of its own: leave out {KEY}={given[KEY]}, or the tour.")


def prepare_tour(config: DictConfig) -> list[str]:
    """Before a sweep, if it is a tour: leave out those experiments whose data want a library that is not there.

    Returns:
        a sentence for each.

    Raises:
        UserError: data sets are not prepared.
    """
    hydra = config.hydra
    tour, params = hydra.runtime.choices.get("tour"), hydra.sweeper.get("params")
    if not tour or not params or KEY not in params:
        return []
    missing: dict[str, None] = {}
    kept, sentences = [], []
    for name in str(params[KEY]).split(","):
        try:
            job = _job(config, name)
            data = data_of(job)
        except UserError:  # for the job itself to say, which does not stop the others
            kept.append(name)
            continue
        try:
            missing |= dict.fromkeys(each for one in data for each in _absent(one, job.dataset.get("root")))
        except UserError as error:
            sentences.append(f"left out: {name}: {error}")
        else:
            kept.append(name)
    if missing:
        raise UserError(
            f"tour={tour} needs data that are not prepared: {', '.join(missing)}; `kdbench data prepare NAME` prepares "
            "each, or says what to download, and tour=survey needs none."
        )
    with read_write(hydra), open_dict(hydra):
        params[KEY] = ",".join(kept)
    return sentences


def _job(config: DictConfig, experiment: str) -> Job:
    fixed = [str(override) for override in config.hydra.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_sweep_config(config, [*fixed, f"{KEY}={experiment}"])
    with read_write(composed), open_dict(composed):
        hydra = composed.pop("hydra")
    leave_the_chosen(composed, hydra)
    return Job.of(composed)


def data_of(job: Job) -> list[Mapping[str, Any]]:
    """What the cells of a job and their teachers learn from, as `kdbench.data.sources.Source.identity` says it.

    Raises:
        UserError: a setting is wrong.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for cell in cells_of(job):
        configs = [cell.dataset]
        recipes = [recipe for recipe, _ in cell.teachers]
        while recipes:
            recipe = recipes.pop()
            configs.append(recipe["dataset"])
            recipes += filter(None, [recipe.get("teacher")])
        found |= {canonical_json(config): config for config in configs}
    return list(found.values())


def _absent(data: Mapping[str, Any], root: str | None) -> list[str]:
    """The names of prepared data sets that are not there.

    Raises:
        UserError: it is a source that is no prepared data set, and cannot be had.
    """
    if "_target_" in data:
        source_of(data).build()
        return []
    names = (data["name"], (data.get("scenario") or {}).get("dataset"))
    return [name for name in names if name and not prepared(name, root)]


__all__ = ["check_tour", "data_of", "prepare_tour"]
