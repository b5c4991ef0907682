"""The hash of a method's code: what changes it, what does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from factories import make_record

from kdbench.method import Method
from kdbench.report.trust import header
from kdbench.source import source_hash
from methods.logits.dkd import DKD
from methods.logits.kd import KD

MINE = '''
"""My method."""
from kdbench.losses import cross_entropy
from kdbench.method import Method
from own_losses import distance

class Mine(Method):
    """What it does."""
    leaf, paper, title = "logits/softened-labels", "mine", "Mine"
    terms = ("ce",)

    def losses(self, s, t, batch):
        # two terms in one
        return {"ce": cross_entropy(s.logits, batch.y) + 0.5 * distance(s.logits, t.logits)}
'''
LOSSES = '''
def distance(a, b):
    """The mean square."""
    return (a - b).square().mean()
'''


Hashed = Callable[..., "str | None"]


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashed]:
    """The hash of a method in files of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    count = iter(range(100))

    def make(mine: str = MINE, losses: str = LOSSES) -> str | None:
        name = f"own{next(count)}"  # what was imported under another name is not read again
        (tmp_path / f"{name}.py").write_text(mine)
        (tmp_path / "own_losses.py").write_text(losses)
        sys.modules.pop("own_losses", None)
        cls: type[Method] = importlib.import_module(name).Mine
        return source_hash(cls)

    yield make
    for name in [name for name in sys.modules if name.startswith("own")]:
        del sys.modules[name]


def test_comments_docstrings_and_formatting_are_no_code(hashed: Hashed) -> None:
    plain = hashed()
    assert plain
    assert len(plain) == 64
    other = MINE.replace("# two terms in one", "# one term").replace('"""What it does."""', "'''Told anew.'''")
    other = other.replace('terms = ("ce",)', 'terms = (\n        "ce",\n    )\n    """Its only term."""')
    other = other.replace('"""My method."""', "")
    assert hashed(other) == plain
    assert hashed(losses=LOSSES.replace('    """The mean square."""\n', "")) == plain


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5 * distance", "0.0 * distance"),
        ("0.5 * distance", "'0.5' * distance"),
        ("0.5 * distance", "-0.5 * distance"),
        ("+ 0.5", "- 0.5"),
        ("t.logits)", "s.logits)"),
        ('"mine"', '"yours"'),
        ("batch.y)", "batch.y, None)"),
    ],
)
def test_any_change_of_the_code_changes_the_hash(hashed: Hashed, old: str, new: str) -> None:
    assert old in MINE
    assert hashed(MINE.replace(old, new)) != hashed()


def test_what_lies_beside_a_method_and_is_imported_by_it_belongs_to_it(hashed: Hashed) -> None:
    assert hashed(losses=LOSSES.replace("square", "abs")) != hashed()


def test_the_code_of_a_base_class_belongs_to_a_method(hashed: Hashed) -> None:
    derived = "from methods.logits.kd import KD\n\nclass Mine(KD):\n    title = 'Mine'\n"
    other = derived.replace("kd import KD", "dkd import DKD as KD")
    assert len({None, hashed(derived), hashed(other), source_hash(KD), source_hash(DKD)}) == 5


def test_there_is_no_hash_without_source() -> None:
    namespace: dict[str, type[Method]] = {}
    exec("from kdbench.method import Method\nclass Typed(Method): pass", {"__name__": "typed"}, namespace)
    assert source_hash(namespace["Typed"]) is None


def test_a_table_says_where_the_seeds_of_a_row_are_by_different_code() -> None:
    def lines(*sources: str | None) -> list[str]:
        made = [make_record("kd", seed, info={"source": source}) for seed, source in enumerate(sources)]
        others = [make_record("dkd", seed, info={"source": "e" * 64}) for seed in range(len(sources))]
        return header([*made, *others], 72.34, None, None, None, protocol="crd240")

    for same in (("a" * 64, "a" * 64), (None, "a" * 64), (None, None)):  # none: made before there were hashes
        assert not any("different code" in line for line in lines(*same))
    assert lines("a" * 64, "b" * 64)[-1] == "Not of one kind: seeds of kd are by different code."
