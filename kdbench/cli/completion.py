"""``kdbench completion``: the shell's TAB key knows commands, options, settings and their choices, your own among them.

`argcomplete` asks the parser, in a process of its own for each TAB; so all of this stands on files alone, and Hydra.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from kdbench.cli.helps import described
from kdbench.cli.overrides import choices, folders, is_group
from kdbench.paths import conf_dir
from kdbench.shipped import REPRODUCTION, names

SHELLS = {
    "bash": 'eval "$(kdbench completion bash)", in ~/.bashrc to keep it',
    "zsh": 'eval "$(kdbench completion zsh)", in ~/.zshrc below compinit',
    "fish": "kdbench completion fish | source, in ~/.config/fish/config.fish",
}


def add_to(commands: Any) -> None:
    parser = commands.add_parser("completion", help="have the TAB key complete commands, settings and names")
    parser.add_argument("shell", choices=SHELLS, help="print what this shell is to read")
    described(parser, {f"for {shell}": what for shell, what in SHELLS.items()})
    parser.set_defaults(command=script)


def script(options: argparse.Namespace) -> int:
    import argcomplete

    print(argcomplete.shellcode(["kdbench"], shell=options.shell))
    return 0


def answer(parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Answer a shell that asks what a line may go on with, and end; else nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    argcomplete.autocomplete(parser(), always_complete_options="long")


def of(words: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """A completer that offers these words."""
    return lambda **_: list(words())


METHODS = of(lambda: names("method"))
PAIRS = of(lambda: names("pair"))


def data_sets(**_: Any) -> list[str]:
    from kdbench.data.about import ABOUT

    return list(ABOUT)


def composed(parser: Any, *flags: str) -> None:
    """Give a parser what Hydra reads behind a command: settings, and the flags that are of use, in any order.

    Only completion sees it: Hydra's grammar is not argparse's.
    """
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir", action="append", default=[])
    parser.add_argument("--cfg", choices=["job", "hydra", "all"])
    for flag in ("--hydra-help", *flags):
        parser.add_argument(flag, action="store_true")
    settings = parser.add_argument("settings", nargs=argparse.REMAINDER, metavar="KEY=VALUE")
    settings.completer = partial(setting, flags=("--multirun", "--config-dir", "--cfg", "--help", *flags))


def setting(prefix: str, parsed_args: argparse.Namespace, flags: Sequence[str], **_: Any) -> list[str]:
    """What a word may become: a flag, a key and its sign, or a key with one of its values."""
    given = [word for word in parsed_args.settings or () if word != prefix]
    args = [*given, *(word for folder in parsed_args.config_dir for word in ("--config-dir", folder))]
    if prefix.startswith("-"):
        return [flag for flag in flags if flag not in given]
    key, equals, value = prefix.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    if not equals:
        return [f"{sign}{each}{'' if sign == '~' else '='}" for each in _keys(args)]
    group = key.lstrip("+").partition("@")[0]
    if is_group(group, args):
        known = arms(value, args) if group == REPRODUCTION and "/" in value else choices(group, args)
        return [f"{key}={each}" for each in _values(value, known)]
    from kdbench.cli.jobs import settings

    default = settings(args).get(key.lstrip("+"))
    return [f"{key}={each}" for each in ("true", "false")] if isinstance(default, bool) else []


def arms(value: str, args: Sequence[str]) -> list[str]:
    """The arms of the reproduction that a value ends with, as far as it is written."""
    from kdbench.reproductions import files, read

    name = value.rpartition(",")[2].partition("/")[0]
    path = files(folders(args)[1:]).get(name)
    return [f"{name}/{arm}" for arm in read(path).arms] if path else []


def _keys(args: Sequence[str]) -> list[str]:
    """Groups, then all settings of what is chosen so far."""
    from kdbench.cli.jobs import settings

    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    return [*sorted(groups), *settings(args)]


def _values(value: str, known: Sequence[str]) -> list[str]:
    """What a value may become: a name, or another one behind those that stand there, in brackets or not."""
    head, mark, last = (
        value.rpartition(",") if "," in value else ("", "[" if value[:1] == "[" else "", value.lstrip("["))
    )
    head += mark
    taken = head.strip("[,").split(",")
    matching = [name for name in known if name.startswith(last) and name not in taken]
    if head.startswith("[") and len(matching) == 1:  # both ways on, so that no space is put behind it
        return [f"{head}{matching[0]}{end}" for end in ",]"]
    return [head + name for name in matching]
