"""Commands that Hydra composes, and one sentence for what it says to bad input."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.cli.console import starting
from kdbench.cli.overrides import choices, folders, is_group, quoted, value_of
from kdbench.cli.reproductions import expanded, forget_arms
from kdbench.errors import UserError, nearest
from kdbench.paths import conf_dir
from kdbench.shipped import REPRODUCTION
from kdbench.text import in_hydra

if TYPE_CHECKING:
    from kdbench.cli.outcomes import Told
    from kdbench.engine.job import Job


LISTS = ("method", "seed", "teachers", "dataset.classes", "dataset.mean", "dataset.std", "protocol.schedule.milestones")
"""What takes a list of values."""
EXTRAS = {f"hydra/launcher={name}": "cluster" for name in ("joblib", "submitit_local", "submitit_slurm", "ray")}
EXTRAS["hydra/sweeper=optuna"] = "search"
"""Plugins of Hydra's -> what of ours brings them."""

_NAME = re.compile(r"(?!(?:null|true|false|inf|nan)$)[A-Za-z_][\w./-]*")


@dataclass
class Jobs:
    """What became of a command's jobs: what each of them told, what went wrong, whether someone put an end to it."""

    told: list[Told]
    errors: list[str]
    interrupted: bool = False


def run_jobs(name: str, task: Callable[[Job, Told], None], args: Sequence[str]) -> Jobs:
    """Run `task` on each config that Hydra composes from `args`, with all of Hydra's own flags and launchers."""
    args = expanded(args)
    check_choices(args)
    with starting():
        import hydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from kdbench.cli.outcomes import Work, left
        from kdbench.cli.sweeps import SWEEPS, Stop
        from kdbench.cli.tours import check_tour

    check_tour(args)
    work, errors = Work(task), []
    gave_up = interrupted = False
    SWEEPS.clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own errors reach us, to become one sentence
    overrides = [arg for arg in args if re.match(r"~|\+{0,2}[\w./@:-]+=", arg) and not arg.startswith("-")]
    flags = [arg for arg in args if arg not in overrides]  # Hydra wants all overrides in one place
    if re.search(r"(^| )(--cfg[= ]|-c ?)job( |$)", " ".join(flags)) and "--resolve" not in flags:
        flags.append("--resolve")  # what would run, values tuned for the pair among it
    previous, sys.argv = sys.argv, [f"kdbench {name}", *overrides, *flags]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="run")(work)()
    except KeyboardInterrupt:
        interrupted = True
    except Stop as stop:
        if not isinstance(cause := stop.__cause__, (HydraException, OmegaConfBaseException)):
            raise cause or stop from None
        errors.append(config_error(cause, args))
    except Exception as error:
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
        forget_arms()
    if work.bug:
        raise work.bug
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
        return no_choice(group, choice, args, options_in(text))
    if several := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'|Sweep parameters '([^=]+)=(.*)'", text):
        key, values = several[1] or several[3], several[2] or several[4]
        return f"{key}={values} is more than one value: {as_one(key.lstrip('+'), values, args)}add -m for one job each."
    if unknown := re.search(r"(?:Could not (?:override|delete)(?: from config.)?|^Key) '([^']+)'", text):
        key = unknown[1]
        if is_group(key, args) or key == "hydra":
            return f"'{key}' cannot be left out: choose with {key}=NAME."
        if key.startswith("method.") and key.count(".") > 1 and not settings(args, key.rsplit(".", 1)[0]):
            return (
                f"there is no setting '{key}': method '{key.split('.')[1]}' is not among those of method=[...], add it."
            )
        if is_group(key.partition("@")[0], args):
            return f"nothing is chosen at '{key}' yet: write +{key}=NAME, with a plus."
        return f"there is no setting '{key}': {nearest(key, list(settings(args)))}"
    if there := re.search(r"already at '([^']+)'|^(.+) appears more than once|^Multiple values for (.+?)\. ", text):
        key = next(filter(None, there.groups()))
        return f"'{key}' is there already: write {key}=VALUE, without the plus."
    if first.startswith("Config group override"):
        bad = [arg for arg in args if is_group(arg, args) and not isinstance(value_of(arg), (str, list))]
        return f"{' '.join(bad[:1])}: a group is chosen by name, or left out with ~GROUP, as in ~logger."
    if "rimary config" in first:
        return (
            "settings begin with kdbench's own run.yaml: leave out --config-name and --config-path (see --config-dir)."
        )
    if merged := re.match(r"Error merging override (.*)", first):
        return f"{merged[1]} is no value for that setting: kdbench run --cfg job shows what is."
    if isinstance(error, UnicodeDecodeError):
        return f"{undecodable(args)} is no UTF-8 text: save it as such."
    return f"{first}: see kdbench run --help."


def check_choices(args: Sequence[str]) -> None:
    """Raises `UserError` for the first unknown name of a group, before anything heavy is imported.

    What is no plain name or list of names, Hydra is asked about.
    """
    for arg in args:
        key, _, value = arg.partition("=")
        group = key.lstrip("+").partition("@")[0]
        if arg.startswith(("-", "~")) or not is_group(group, args) or group == REPRODUCTION:  # whose arms are known
            continue
        names = [name.strip(" '\"") for name in value.strip("[] ").split(",")]
        for name in names if all(map(_NAME.fullmatch, names)) else ():
            if name not in (known := choices(group, args)) and not name.endswith(".yaml"):
                raise UserError(no_choice(group, name, args, known))


def no_choice(group: str, choice: str, args: Sequence[str], known: Sequence[str] = ()) -> str:
    """What to say of a group's choice that there is not; `known` are those of a group of Hydra's own."""
    for within in ("experiment", "tour"):  # whose choices stand in folders, too
        if group.startswith(f"{within}/"):
            group, choice = within, f"{group.removeprefix(f'{within}/')}/{choice}"
    what = f"there is no {group} '{choice}'"
    if group == "dataset" and (prepared := prepared_folder(choice, args)):
        return f"{what}, but a prepared folder: write {prepared}."
    if group == "protocol" and (made := made_protocol(choice, args)):
        return f"{what} by itself: {made}."
    where = "kdbench methods shows them all." if group == "method" else f"see {conf_dir() / group}."
    return f"{what}: {nearest(choice, choices(group, args) or known, where)}"


def made_protocol(name: str, args: Sequence[str]) -> str:
    """Which experiment gives its protocol that name, as tables show it, and what it makes it of; empty if none does."""
    import yaml

    from kdbench.results.record import flatten

    for folder in folders(args):
        for path in sorted((folder / "experiment").rglob("*.yaml")):
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                continue
            own = content.get("protocol") if isinstance(content, dict) else None
            if not isinstance(own, dict) or own.get("name") != name:
                continue
            chosen = [item for item in content.get("defaults", []) if isinstance(item, dict)]
            base = next((item["override /protocol"] for item in chosen if "override /protocol" in item), "lite")
            values = " ".join(f"protocol.{key}={value}" for key, value in flatten(own).items())
            experiment = path.relative_to(folder / "experiment").with_suffix("").as_posix()
            return f"experiment={experiment} makes it of protocol={base} {values}"
    return ""


def prepared_folder(name: str, args: Sequence[str]) -> str:
    """How to choose the prepared data set `name`, which has no configuration of its own; empty where there is none."""
    from kdbench.data.arrays import MANIFEST, folder_of, is_name

    root = next((arg.partition("=")[2].strip("'\"") for arg in args if re.match(r"\+{0,2}dataset\.root=", arg)), None)
    folder = folder_of(name, None if root == "null" else root) if is_name(name) else None
    if folder is None or not os.path.exists(folder / "meta.json"):
        return ""
    group = "streamed" if os.path.exists(folder / MANIFEST) else "folder"
    return f"dataset={group} {assignment('dataset.name', name)}"


def assignment(key: str, value: str) -> str:
    """``KEY=VALUE`` for a shell, where Hydra is to take `value` as text: in quotes of its own if it must be."""
    word = in_hydra(value)
    return f"{key}={word}" if word == value else shlex.quote(f"{key}={word}")


def as_one(key: str, values: str, args: Sequence[str]) -> str:
    """How `key` takes several `values` as one, as the beginning of a sentence."""
    default = settings(args).get(key)
    if isinstance(default, float) and re.fullmatch(r"-?\d+,\d+", values):
        return f"write {key}={values.replace(',', '.')}, with a point, or "
    if isinstance(default, str) and not is_group(key, args):
        return f'write "{key}={quoted(values)}" for one text with commas, or '
    if key in LISTS and "(" not in values:
        return f"write '{key}=[{values}]', or "
    return ""


def undecodable(args: Sequence[str]) -> str:
    """The first YAML that is no text."""
    for folder in folders(args):
        for path in sorted(folder.rglob("*.yaml")):
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                return str(path)
            except OSError:
                continue
    return "a YAML file"


def options_in(text: str) -> list[str]:
    """The choices that Hydra's message lists for a group of its own."""
    return re.findall(r"^\t([\w.-]+)$", text.partition("Available options")[2].partition("Config search")[0], re.M)


def settings(args: Sequence[str], within: str = "") -> dict[str, Any]:
    """Values of all settings by dotted name (`within` a part), with those choices of `args` that are whole groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    import kdbench.tuned  # noqa: F401  # the resolver that methods' settings ask
    from kdbench.results.record import flatten

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            groups = [arg for arg in args if is_group(arg, args)]
            more = [f"file://{folder.resolve()}" for folder in folders(args)[1:]]
            config: Any = OmegaConf.to_container(compose("run", [*groups, f"hydra.searchpath={more}"]), resolve=True)
    except Exception:  # whatever else is wrong: this only serves a hint
        return {}
    known = flatten(config)
    # what a search would try is no setting to reach for
    return {name: value for name, value in known.items() if name.startswith(within) and ".search." not in name}
