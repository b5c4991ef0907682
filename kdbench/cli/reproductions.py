"""``reproduction=NAME``: the arms of a published number as Hydra's configs, which a sweep goes over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdbench.cli.overrides import folders
from kdbench.errors import UserError
from kdbench.shipped import REPRODUCTION as GROUP

if TYPE_CHECKING:
    from kdbench.reproductions import Reproduction

_CHOICE = re.compile(rf"\+{{0,2}}{GROUP}=(.*)")


def expanded(args: Sequence[str]) -> list[str]:
    """The arguments with the arms in a group's place, and ``-m`` where these are several; Hydra is told of the arms.

    Raises:
        UserError: there is no such group or arm, or an experiment or a tour is asked for beside it.
    """
    if not any(map(_CHOICE.fullmatch, args)):
        return list(args)
    if other := next((arg for arg in args if re.match(r"\+{0,2}(tour|experiment)=(?!null$)", arg)), None):
        raise UserError(f"{GROUP}=... has settings of its own: leave out {other}, or the {GROUP}.")
    from kdbench.reproductions import split

    found, sweep = [], False
    for arg in args:
        if not (choice := _CHOICE.fullmatch(arg)) or choice[1] == "null":
            found.append(arg)
            continue
        words = []
        for word in choice[1].split(","):
            group, arms = split(word.strip(), folders(args)[1:])
            _register(group, arms)
            words += [f"{group.name}/{arm}" for arm in arms]
        if any(each == "-c" or each.startswith("--cfg") for each in args):
            words = words[:1]  # one of the sweep's configs is shown
        sweep = len(words) > 1
        found.append(f"{GROUP}={','.join(words)}")
    return [*found, "--multirun"] if sweep and not {"-m", "--multirun"} & set(args) else found


def _register(group: Reproduction, arms: Sequence[str]) -> None:
    """Hydra's store of configs goes with the jobs, to other processes and machines."""
    from hydra.core.config_store import ConfigStore

    for arm in arms:
        ConfigStore.instance().store(
            group=f"{GROUP}/{group.name}", name=arm, node=group.node(arm), package="_global_", provider="kdbench"
        )


def forget_arms() -> None:
    """Of a command that ended: Hydra copies its whole store for every config that it composes afterwards."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().repo.pop(GROUP, None)
