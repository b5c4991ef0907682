"""CONTRIBUTING and the docstrings of the contract: what they say of the code is so."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import pytest
import torch
from conftest import ROOT

import kdbench.data.scenarios
import kdbench.losses
import kdbench.method
import kdbench.tasks.base
from kdbench.data.batch import Batch
from kdbench.data.datasets import DatasetConfig
from kdbench.method import Method
from kdbench.registry import methods
from kdbench.taps import Out

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHODS = {entry.name: entry.cls for entry in methods()}
MEMBERS = list(vars(Method))
HOOKS = MEMBERS[MEMBERS.index("build") : MEMBERS.index("deployed") + 1]
CONTROLS = "controls"
X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


def table(head: str) -> list[list[str]]:
    """The cells of the rows of the table whose head begins so."""
    (found,) = re.findall(rf"^\|{re.escape(head)}.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", cell)


@cache
def uses(name: str, word: str) -> bool:
    """Whether a method overrides this hook, or its own code (its file, those it derives from) has this word."""
    cls = METHODS[name]
    if word in HOOKS:
        return getattr(cls, word) is not getattr(Method, word)
    own = {inspect.getmodule(base) for base in cls.__mro__ if base.__module__.startswith("methods.")}
    return any(word in inspect.getsource(module) for module in own if module)


CENSUS = {word: words(row[2]) for row in table(" word ") for word in words(row[0])}


def test_the_census_has_every_hook() -> None:
    assert [word for word in CENSUS if word in MEMBERS and word in HOOKS] == HOOKS


@pytest.mark.parametrize("word", CENSUS)
def test_whoever_is_named_uses_the_word(word: str) -> None:
    assert [name for name in CENSUS[word] if not uses(name, word)] == []
    if word in HOOKS:
        families = {METHODS[name].leaf for name in CENSUS[word]} - {CONTROLS}
        assert len(families) >= 2, f"{word} is shown with one family: {families}"


WORDS = (*HOOKS, "Stage(", "Snapshot(", "self.take(", "t.each", '["again"]', '["unlabelled"]')
"""But for `experience`, `keep` and `kept`, which belong to the methods of one scenario."""


def test_every_word_of_the_contract_has_two_families() -> None:
    """Counted over the registry; the base classes that methods share are their own code."""
    users = {word: {METHODS[name].leaf for name in METHODS if uses(name, word)} - {CONTROLS} for word in WORDS}
    lonely = {word: sorted(leaves) for word, leaves in users.items() if len(leaves) < 2}
    assert not lonely, f"words of the contract that fewer than two families use: {lonely}"


@pytest.mark.parametrize(("column", "name"), [(1, "kd"), (2, "bic")])
def test_the_two_methods_are_as_told(column: int, name: str) -> None:
    told = {words(row[0])[0]: row[column] for row in table(" | KD")}
    assert [word for word in told if word in HOOKS] == HOOKS
    assert [word for word in HOOKS if uses(name, word)] == [word for word in HOOKS if told[word] != "-"]
    for word in ("needs", "tasks", "terms"):
        assert set(words(told[word])) == set(getattr(METHODS[name], word))


def test_files_that_are_named_exist() -> None:
    named = [word for word in words(PAGE) if re.fullmatch(r"(kdbench|methods|conf|tests|results)/[\w/.]+", word)]
    assert len(named) >= 12
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "module", [kdbench.method, kdbench.tasks.base, kdbench.data.scenarios], ids=lambda m: m.__name__
)
def test_examples_of_docstrings_run(module: ModuleType) -> None:
    """A method, a task and a scenario, as a reader would take them from there."""
    (example,) = re.findall(r"::\n\n((?:    .*\n|\n)+?)\n*(?=\S|\Z)", module.__doc__ or "")
    names = {"dataclass": dataclass, **vars(kdbench.losses), **vars(module)}
    exec(textwrap.dedent(example), names)
    if module is kdbench.method:
        terms = names["KD"](temperature=2.0).losses(Out({"logits": X}), Out({"logits": X}), Batch.of((X, Y)))
        assert terms["kd"] == 0
        assert terms["ce"] > 0
    elif module is kdbench.tasks.base:
        task = names["Counting"]()
        meter = task.meter(None)
        meter.begin()
        meter.update(lambda x: x[:, :1], Batch.of((X, X[:, 0] + 2)))
        assert meter.compute()["MAE"] == pytest.approx(2.0) == task.loss(X[:, :1], X[:, 0] + 2)
        assert meter.examples().shape == (len(X),)
    else:
        data = DatasetConfig.of({"name": "digits"}).build()
        assert torch.equal(names["EveryOther"](first=1)(data).train.labels, data.train.labels[1::2])
