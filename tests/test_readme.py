"""README and CONTRIBUTING: what they show can be pasted."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import PACKAGES, ROOT, Kdbench

from kdbench.cli import program
from kdbench.paths import conf_dir

PAGES = ("README.md", "CONTRIBUTING.md")


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

    @property
    def commands(self) -> list[list[str]]:
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        assert all(line.startswith("$ ") for line in lines), self.text
        return [shlex.split(line[2:], comments=True) for line in lines]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"(?:^|\n\n)([^`\n][^\n]*(?:\n[^\n]+)*)?\n*```(\w*)\n(.*?)\n```", text, re.S)
    made = [Block(page, each[2], each[3], each[1] or "") for each in found]
    assert len(made) == text.count("\n```") / 2
    return made


COMPOSED = (["run"], ["tune"], ["teacher", "train"], ["teacher", "import"], ["teacher", "cache"])
"""Commands whose settings Hydra composes."""
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [command for block in BLOCKS if block.language == "console" for command in block.commands]
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
    args = command[1:]
    name = next((name for name in COMPOSED if args[: len(name)] == name), None)
    if not name:
        program.parser().parse_args(args)
        return
    write_files(kd.root)
    settings = [arg for arg in args[len(name) :] if arg not in ("-m", "--cfg", "job", "--help", "--all")]
    # those of plugins, which need not be installed here, are tried for real in test_cluster.py
    settings = [arg for arg in settings if not re.match(r"\+?hydra[./](launcher|sweeper)", arg)]
    if "-m" in args:  # one of its jobs
        settings = [re.sub(r"^(\S+?=)([^\[,]*),.*", r"\1\2", arg) for arg in settings]
    result = kd(*name, *settings, "--cfg", "job")
    assert result.code == 0, result
    assert "protocol:" in result.out


def write_files(folder: Path) -> list[Path]:
    """The blocks that the pages give a name, as files."""
    written = []
    for block in BLOCKS:
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + "\n")
            written.append(path)
    return written


def test_a_method_of_ones_own_as_pasted(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert {path.relative_to(kd.root).as_posix() for path in write_files(kd.root)} >= {
        "mine.py",
        "myconf/method/mine.yaml",
    }
    (command,) = [command for command in COMMANDS if "--config-dir" in command]
    small = ["protocol.epochs=1", "dataset.per_class=20"]
    result = kd(*command[1:], *small)
    sys.modules.pop("mine", None)
    assert result.code == 0, result
    assert re.search(r"^ *mine +3 ", result.out, re.M)
    assert {(r.cell.method, r.cell.seed) for r in kd.records()} == {
        (method, seed) for method in ("scratch", "kd", "mine") for seed in range(3)
    }


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python" and not block.file])
def test_scripts_run_as_pasted(kd: Kdbench, block: Block) -> None:
    write_files(kd.root)
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=kd.root,
        env={"PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_sample_shows_the_quickstart() -> None:
    (sample,) = [block for block in BLOCKS if not block.language and block.page == "README.md"]
    shown = re.findall(r"^(\w+) +3 ", sample.text, re.M)
    experiment = (conf_dir() / "experiment" / "quickstart.yaml").read_text()
    (methods,) = re.findall(r"override /method: \[([^\]]*)\]", experiment)
    assert sorted(shown) == sorted(re.split(r", *", methods))
    assert "last digits" in sample.above
