"""README, CONTRIBUTING and the guides: what they show can be pasted, and what they link to exists.

What a page shows is tried in the page's order, in one folder, which holds a few committed records as its store: files
are written, scripts and quick commands run. Commands that train at length, download or need a cluster are composed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, Kdbench
from markdown_it import MarkdownIt

from kdbench.cli import program
from kdbench.cli.overrides import SWEEP
from kdbench.paths import conf_dir

PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/guides/{path.name}" for path in ROOT.glob("docs/guides/*.md")))
COMPOSED = tuple(name.split() for name in program.COMPOSED)
FLAGS = ("-m", "--cfg", "job", "--help", "--all")
LONG = (*COMPOSED, ["bench"], ["latency"], ["data", "prepare"], ["reproduce"], ["student", "export"])


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the paragraph above it."""

    page: str
    language: str
    text: str
    above: str

    @property
    def file(self) -> str | None:
        """The name that the paragraph above gives the file."""
        ending = {"python": "py", "yaml": "yaml"}.get(self.language, self.language)
        named = re.findall(rf"`([\w./-]+\.{ending})`", self.above)
        return named[-1] if named else None

    @cached_property
    def commands(self) -> list[list[str]]:
        if self.language != "console":
            return []
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        assert all(line.startswith("$ ") for line in lines), self.text
        return [shlex.split(line[2:], comments=True) for line in lines]

    def write(self, folder: Path) -> Path:
        assert self.file
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text)
        return path


def blocks(page: str) -> list[Block]:
    made, above = [], ""
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type == "inline":
            above = token.content
        elif token.type == "fence":
            made.append(Block(page, token.info, token.content, above))
    return made


def begins(command: list[str], names: tuple[list[str], ...]) -> list[str] | None:
    return next((name for name in names if command[1 : 1 + len(name)] == name), None)


def about(command: list[str], own: set[str]) -> bool:
    """Whether it is about what the page itself shows, a folder of images or these modules: it is run, in small."""
    runs = command[1] == "run" and any(name in re.split(r"[\W]", arg) for arg in command for name in own)
    return runs or "dataset=folder" in command or command[1:4] == ["data", "prepare", "folder"]


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = list({shlex.join(command): command for block in BLOCKS for command in block.commands}.values())
INLINE = [
    shlex.split(re.sub(r"\[(-[^\]]*)\]", r"\1", command))
    for page in PAGES
    for command in re.findall(r"`(kdbench [^`]*)`", (ROOT / page).read_text(encoding="utf-8"))
]


def test_all_kinds_of_blocks_are_known() -> None:
    assert {block.language for block in BLOCKS} <= {"", "console", "python", "yaml"}
    assert {command[0] for command in COMMANDS} <= {"make", "kdbench", "pip"}
    assert sum(block.language == "yaml" for block in BLOCKS) >= 1
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", [command for command in COMMANDS if command[0] != "kdbench"], ids=shlex.join)
def test_targets_and_extras_exist(command: list[str]) -> None:
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.M)
    else:
        project = (ROOT / "pyproject.toml").read_text()
        for extra in re.findall(r"\[(\w+)\]", command[-1]):
            assert re.search(rf"^{extra} = \[", project, re.M)


@pytest.mark.parametrize("command", COMMANDS + INLINE, ids=shlex.join)
def test_commands_are_understood(kd: Kdbench, command: list[str]) -> None:
    if command[0] != "kdbench" or command == ["kdbench", "run"]:
        return
    name = begins(command, COMPOSED)
    if not name:
        with suppress(SystemExit) if "--help" in command else nullcontext():
            program.parser().parse_args(command[1:])
        return
    write_files(kd.root)
    settings = [arg for arg in command[1 + len(name) :] if arg not in FLAGS]
    # those of plugins, which need not be installed here, are tried for real in test_cluster.py
    settings = [arg for arg in settings if not re.match(r"cluster=|\+?hydra[./](launcher|sweeper)", arg)]
    if any(map(SWEEP.fullmatch, command)):  # one of its jobs
        settings = [re.sub(r"^(\S+?=)([^\[,]*),.*", r"\1\2", arg) for arg in settings]
    result = kd(*name, *settings, "--cfg", "job")
    assert result.code == 0, result
    assert "protocol:" in result.out


def write_files(folder: Path) -> list[Path]:
    """The blocks that the pages give a name, as files."""
    return [block.write(folder) for block in BLOCKS if block.file]


def test_a_method_of_ones_own_as_pasted(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert {path.relative_to(kd.root).as_posix() for path in write_files(kd.root)} >= {
        "mine.py",
        "myconf/method/mine.yaml",
    }
    shown = [command for block in blocks("README.md") for command in block.commands]
    (command,) = [command for command in shown if "--config-dir" in command]
    small = ["protocol.epochs=1", "dataset.per_class=20"]
    result = kd(*command[1:], *small)
    sys.modules.pop("mine", None)
    assert result.code == 0, result
    assert re.search(r"^ *mine +3 ", result.out, re.M)
    assert {(r.cell.method, r.cell.seed) for r in kd.records()} == {
        (method, seed) for method in ("scratch", "kd", "mine") for seed in range(3)
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_guides_work_from_top_to_bottom(kd: Kdbench, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(kd.root / "data"))
    records = kd.results / "records"
    records.mkdir(parents=True)
    for path in (ROOT / "results" / "records").glob("*-cifar100-lite-s[012]-*"):
        if path.name.startswith(("scratch", "kd", "fitnet")):
            shutil.copy(path, records)
    own = set()
    for block in blocks(page):
        if block.file:
            own.add(block.write(kd.root).stem)
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), {})
        for command in block.commands:
            if command[0] == "kdbench" and (about(command, own) or not begins(command, LONG)):
                small = [*SMALL, "seed=[0,1]"] if begins(command, COMPOSED) else []
                result = kd(*command[1:], *small)
                assert result.code == 0, (command, result)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        if anchor:
            heads = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads]


def test_the_sample_shows_the_quickstart() -> None:
    (sample,) = [block for block in BLOCKS if not block.language and block.page == "README.md"]
    shown = re.findall(r"^(\w+) +3 ", sample.text, re.M)
    experiment = (conf_dir() / "experiment" / "quickstart.yaml").read_text()
    (methods,) = re.findall(r"override /method: \[([^\]]*)\]", experiment)
    assert sorted(shown) == sorted(re.split(r", *", methods))
    assert "last digits" in sample.above
