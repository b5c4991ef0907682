"""What users write as KEY=VALUE, in Hydra's grammar: put into quotes where that was meant, else one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from kdbench.errors import UserError
from kdbench.paths import conf_dir

CONFIG_DIR = ("--config-dir", "-cd")
WITH_VALUE = (
    *CONFIG_DIR,
    *("--config-path", "-cp", "--config-name", "-cn", "--package", "-p", "--cfg", "-c", "--experimental-rerun"),
)
SWEEP = re.compile(r"-m|--multirun|hydra\.mode=multirun|(tour|cluster)=(?!null).+", re.IGNORECASE)
"""What makes a sweep of a command."""
CLOSING = {"[": "]", "{": "}", "(": ")"}


def readable(args: Sequence[str]) -> list[str]:
    """The arguments with all that Hydra's grammar could not read put into quotes.

    Raises:
        UserError: an argument is no setting, is cut off, or chooses a method whose file lacks its header.
    """
    sweep = any(map(SWEEP.fullmatch, args))
    read: list[str] = []
    for k, (before, arg) in enumerate(pairwise(["", *args])):
        flag = arg.startswith("-") or before in WITH_VALUE or (before in ("--info", "-i") and "=" not in arg)
        if not flag and not _sets(arg):
            raise UserError(
                f"'{_short(arg)}' is no setting: write KEY=VALUE, as in seed=0, or ~KEY to leave one out"
                + (
                    f"; spaces need quotes for the shell, as in '{_short(f'{before} {arg}')}'."
                    if "=" in before
                    else "."
                )
            )
        # of what teacher.dataset may differ in, nothing stands in the config yet; and a hash is no number
        said = re.sub(r"^(?=teacher\.dataset\.)", "++", arg)
        said = re.sub(r"^((?:teacher\.)+(?:weights|sha256))=([0-9a-f]+)$", r"\1='\2'", said)
        read.append(arg if flag else _override(said, sweep, args[k + 1 :]))
    _check_methods(read)
    return read


def _sets(arg: str) -> bool:
    """Whether an argument is KEY=VALUE or ~KEY."""
    return bool(arg.partition("=")[0].lstrip("+~")) and ("=" in arg or arg.startswith("~"))


def folders(args: Sequence[str]) -> list[Path]:
    """Where groups lie: in the bench's own folder, and in those given as ``--config-dir``."""
    given = [value for flag, value in pairwise(args) if flag in CONFIG_DIR]
    given += [arg.partition("=")[2] for arg in args if arg.startswith("--config-dir=")]
    return [conf_dir(), *map(Path, given)]


def is_group(override: str, args: Sequence[str] = ()) -> bool:
    """Whether ``GROUP=NAME``, or ``GROUP`` alone, names a config group."""
    name = override.partition("=")[0].lstrip("+~")
    return bool(name) and any((folder / name).is_dir() for folder in folders(args))


def choices(group: str, args: Sequence[str]) -> list[str]:
    """The names of a config group, those of --config-dir included."""
    tops = [folder / group for folder in folders(args)]
    found = (path.relative_to(top) for top in tops for path in top.rglob("*.yaml") if path.is_file())
    return sorted({path.with_suffix("").as_posix() for path in found})


def value_of(override: str) -> Any:
    """The value of an override as Hydra reads it.

    Raises:
        HydraException: it cannot.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (read,) = OverridesParser.create().parse_overrides([override])
    return None if read.is_sweep_override() else read.value()


def _parses(override: str) -> bool:
    from hydra.errors import HydraException

    try:
        value_of(override)
    except (HydraException, RecursionError):
        return False
    return True


def _override(arg: str, sweep: bool, after: Sequence[str]) -> str:
    key, equals, value = arg.partition("=")
    name = key.lstrip("+~")
    if not _parses(f"{name}=0"):
        within, _, last = name.rpartition(".")
        if within and re.search(r"[*?]", last) and _parses(f"{within}=0"):
            whole = f"'+{within}={{{last}: {value}}}'"
            raise UserError(f"'{name}' cannot be a key on the command line: write {whole}, in quotes for the shell.")
        raise UserError(f"there is no setting '{_short(name)}': kdbench run --cfg job shows what there is.")
    if not equals or _parses(arg):
        return arg
    for k in range(1, len(after) + 1):
        whole = " ".join([arg, *after[:k]])
        if value[:1] in ("[", "{") and not any(map(_sets, after[:k])) and _parses(whole):
            raise UserError(f"{_short(arg)} is cut off at a space: write '{_short(whole)}', in quotes for the shell.")
    values = list(_parts(value)) if sweep else [value]
    read = f"{key}={','.join(_value(name, each.strip()) for each in values)}"
    if not _parses(read):
        raise UserError(f"{_short(arg)} cannot be read: give texts quotes of their own, as in \"{name}='TEXT'\".")
    return read


def _value(name: str, value: str) -> str:
    """A value that Hydra reads as it was meant: a text in quotes, a list or mapping with its parts in quotes."""
    if _parses(f"k={value}"):
        return value
    first, last = value[:1], value[-1:]
    if first and first in "[{":
        parts = list(_parts(value[1:-1])) if last == CLOSING[first] else []
        if not parts:
            raise UserError(f"{name}={_short(value)} is cut off: write '{name}={_short(value + _missing(value))}'.")
        if first == "[":
            return f"[{','.join(_value(name, part.strip()) for part in parts)}]"
        pairs = [part.partition(":")[::2] for part in parts]
        return f"{{{','.join(f'{key.strip()}:{_value(name, each.strip())}' for key, each in pairs)}}}"
    if first and first in "'\"":
        raise UserError(
            f"{name}={_short(value)} has a quote that is not closed: leave it out, or write \"{name}='TEXT'\"."
        )
    if len(parts := list(_parts(value))) > 1:
        each = ",".join(_value(name, part.strip()) for part in parts)
        raise UserError(
            f'{name}={_short(value)} is more than one value: write "{name}={quoted(value)}" for one text with commas, '
            f'or "{name}={each}" and -m for one job each.'
        )
    return quoted(value)


def quoted(text: str) -> str:
    """A text in Hydra's quotes."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text, Quote.single).with_quotes())


def _parts(text: str) -> Iterator[str]:
    """`text` at those commas that stand in no brackets and no quotes."""
    inside, quote, part = 0, "", ""
    for char in text:
        if quote or char in "'\"":
            quote = "" if char == quote else quote or char
        inside += (char in "[{(") - (char in "]})")
        if char == "," and not quote and inside <= 0:
            yield part
            part = ""
        else:
            part += char
    yield part


def _missing(text: str) -> str:
    """The closing brackets that a text lacks."""
    open_: list[str] = []
    for char in text:
        if char in CLOSING:
            open_.append(CLOSING[char])
        elif open_ and char == open_[-1]:
            open_.pop()
    return "".join(reversed(open_))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_methods(args: Sequence[str]) -> None:
    """Raises `UserError` where the settings of a chosen method of ``--config-dir`` would not land under its name."""
    import yaml

    names: list[str] = []
    for arg in args:
        key, _, value = arg.partition("=")
        if key.lstrip("+") == "method":
            names += re.findall(r"[^\s,\[\]'\"]+", value)
    for folder in folders(args)[1:]:
        for name in names:
            path = folder / "method" / f"{name}.yaml"
            if not path.is_file():
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            try:
                settings = yaml.safe_load(text)
            except yaml.YAMLError:
                continue  # told when it is composed
            if isinstance(settings, dict) and "_target_" in settings and not _has_package(text):
                raise UserError(
                    f"{path} lacks the header '# @package method.{name}': make it the first line, above all comments."
                )


def _has_package(text: str) -> bool:
    """Whether Hydra sees a package header: it looks no further than the first line that is none."""
    for line in filter(None, map(str.strip, text.splitlines())):
        if not re.match(r"#\s*@", line):
            return False
        if re.match(r"#\s*@package\s", line):
            return True
    return False
