"""The TAB key, as bash presses it: commands, options, settings, and names of yours among the bench's."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import ROOT, Kdbench

from kdbench.cli import completion
from kdbench.registry import methods

BASH = shutil.which("bash")
FLAGS = ("--multirun", "--config-dir")


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which ``kdbench`` is this checkout's."""
    command = tmp_path / "bin" / "kdbench"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kdbench.cli "$@"\n')
    command.chmod(0o755)
    (tmp_path / "myconf" / "method").mkdir(parents=True)
    (tmp_path / "myconf" / "method" / "minemine.yaml").write_text("# @package method.minemine\n_target_: mine.Mine\n")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}


def press_tab(line: str, env: dict[str, str], folder: Path, seconds: float = 60.0) -> str:
    """What stands on the command line of an interactive bash after one TAB."""
    assert BASH
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(BASH, ["bash", "--norc", "--noprofile", "-i"], {**env, "TERM": "dumb", "PS1": "READY> "})
    said = b""

    def until(pattern: bytes) -> None:
        nonlocal said
        end = time.monotonic() + seconds
        while not re.search(pattern, said) and time.monotonic() < end:
            if select.select([fd], [], [], 0.2)[0]:
                said += os.read(fd, 65536)
        assert re.search(pattern, said), said

    try:
        until(b"READY> ")
        said = b""
        os.write(fd, b'bind "set bell-style none"; eval "$(kdbench completion bash)"; echo loa""ded\n')
        until(b"loaded\r?\n(.|\n)*READY> ")
        said = b""
        os.write(fd, f"echo {line}".replace("echo kdbench", "kdbench", 1).encode() + b"\t")
        os.write(fd, b"#end")  # typed behind whatever the shell makes of it, once it is done with that
        until(b"#end")
        return said.decode().partition("#end")[0]
    finally:
        os.close(fd)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.skipif(not BASH, reason="there is no bash")
def test_bash_completes_a_name(shell: dict[str, str], tmp_path: Path) -> None:
    assert press_tab("kdbench run -m seed=0,1 method=rk", shell, tmp_path) == "kdbench run -m seed=0,1 method=rkd "


METHODS = [entry.name for entry in methods()]
ASKED = {
    "kdbench ru": {"run "},
    "kdbench teacher ca": {"cache "},
    "kdbench run --config": {"--config-dir "},
    "kdbench run method=[kd,logits_m": {r"\[kd,logits_mse,", r"\[kd,logits_mse\]"},
    "kdbench run 'method=[kd,logits_m": {"method=[kd,logits_mse,", "method=[kd,logits_mse]"},
    "kdbench run method=kd pair=wrn-16-": {"wrn-16-2-wrn-16-2-g8 "},
    "kdbench run dataset=fashion": {"fashion_mnist "},
    "kdbench run experiment=smoke/incr": {"smoke/incremental "},
    "kdbench run method=kd --config-dir myconf method=minem": {"minemine "},
    "kdbench run method=minem": set(),
    "kdbench run method=fitnet method.fitnet.hint_s": {"method.fitnet.hint_share="},
    "kdbench run force=": {"true", "false"},
    "kdbench data prepare cifar100": {"cifar100 "},
    "kdbench methods fitnet": {name for name in METHODS if name.startswith("fitnet")},
    "kdbench completion ba": {"bash "},
}


@pytest.mark.skipif(not BASH, reason="there is no bash")
def test_what_bash_is_offered(shell: dict[str, str], tmp_path: Path) -> None:
    lines = ['eval "$(kdbench completion bash)"']
    for k, line in enumerate(ASKED):
        quoted = line.replace("'", "'\\''")
        lines += [
            f"COMP_LINE='{quoted}'; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9; COMPREPLY=()",
            "_python_argcomplete kdbench",
            f"printf '{k}:%s\\n' \"${{COMPREPLY[@]}}\"",
        ]
    done = subprocess.run(
        [str(BASH), "-c", "\n".join(lines)], cwd=tmp_path, env=shell, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    for k, (line, expected) in enumerate(ASKED.items()):
        offered = {each for each in re.findall(rf"^{k}:(.*)$", done.stdout, re.M) if each}
        assert offered == expected, line


@pytest.mark.parametrize("name", completion.SHELLS)
def test_every_shell_has_something_to_read(kd: Kdbench, name: str) -> None:
    result = kd("completion", name)
    assert result.code == 0
    assert "_ARGCOMPLETE" in result.out
    assert "kdbench" in result.out
    if program := shutil.which(name):
        subprocess.run([program, "-n"], input=result.out, text=True, check=True)


@pytest.mark.parametrize(
    ("prefix", "more"),
    [
        ("method=ls", {"method=ls"}),
        ("method=ls,rk", {"method=ls,rkd"}),
        ("reproduction=keras", {"reproduction=keras_example"}),
        ("reproduction=keras_example/k", {"reproduction=keras_example/kd"}),
        ("reproduction=nope/k", set()),
        ("+method=ls,rk", {"+method=ls,rkd"}),
        ("method=[ls,rkd,ls", set()),  # each once
        ("method@teacher.method=rk", {"method@teacher.method=rkd"}),
        ("--m", {"--multirun", "--config-dir"}),
        ("nothing=", set()),
    ],
)
def test_values(prefix: str, more: set[str]) -> None:
    found = completion.setting(prefix, Namespace(settings=["seed=1", prefix], config_dir=[]), flags=FLAGS)
    assert set(found) == more


def test_keys_are_those_of_what_is_chosen() -> None:
    keys = completion.setting("", Namespace(settings=["method=fitnet"], config_dir=[]), flags=FLAGS)
    assert {"method=", "pair=", "seed=", "protocol.epochs=", "method.fitnet.hint_share=", "force="} <= set(keys)
    assert "method.kd.temperature=" not in keys
    assert "~logger" in completion.setting("~", Namespace(settings=[], config_dir=[]), flags=FLAGS)
