"""The program's edges: what it makes of odd values, broken files, and output that nobody can take."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PACKAGES, SMALL, Kdbench
from test_cli import OWN_METHOD, OWN_YAML, one_sentence

import kdbench.taxonomy
from kdbench.cli import main, program
from kdbench.cli.overrides import readable, value_of
from kdbench.errors import UserError

# ---- values -----------------------------------------------------------------------------------------------------

TEXTS = [
    "r/runs (v2)",
    "r/ergebnisse_für_köln",
    r"C:\new\runs (v2)",
    r"D:\läufe\x",
    "runs(v2)",
    "a=b",
    "it's",
    'say "so"',
    "a&b;c|d",
    "~/x y",
    "<a>#!`",
    "r/[v2",
    "r/v2]",
    "r/{v2",
    "🙂",
    "line\nbreak",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_what_was_meant(text: str) -> None:
    (read,) = readable([f"paths.results={text}"])
    assert value_of(read) == text


@pytest.mark.parametrize(
    "value", ["r/runs", "r/my runs", "1e-3", "[0,1]", "{a: 1}", "'a b'", "a,b", "range(0,2)", "${x}", ""]
)
def test_what_can_be_read_stays_as_it_is(value: str) -> None:
    assert readable([f"k={value}", "~logger", "-m"]) == [f"k={value}", "~logger", "-m"]


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("[köln,ab (c)]", ["köln", "ab (c)"]),
        ("{a*: 0.1, b: köln}", {"a*": 0.1, "b": "köln"}),
        ("[[ä],{k: ö}]", [["ä"], {"k": "ö"}]),
        ("['ä,b',c d]", ["ä,b", "c d"]),
    ],
)
def test_texts_in_lists_and_mappings(value: str, meant: Any) -> None:
    (read,) = readable([f"k={value}"])
    assert value_of(read) == meant


def test_each_value_of_a_sweep_is_quoted() -> None:
    assert readable(["-m", "paths.results=a (1),b,ö"]) == ["-m", "paths.results='a (1)',b,'ö'"]


def test_flags_keep_their_values() -> None:
    flags = ["--config-dir", "my conf (v2)", "--cfg", "job", "-p", "paths", "--info", "defaults", "--config-dir=ö"]
    assert readable(flags) == flags


WRITTEN = {
    "seed=[0,1": "seed=[0,1]",
    "method.kd.weights={ce: 1": "method.kd.weights={ce: 1}",
    "k=[{a: [1": "k=[{a: [1]}]",
    "+protocol.lr_for.resnet8*=0.1": "+protocol.lr_for={resnet8*: 0.1}",
    "paths.results=a (1),b": "paths.results='a (1),b'",
    "seed='0": "seed='TEXT'",
}


@pytest.mark.parametrize("given", WRITTEN)
def test_the_mend_is_one(given: str) -> None:
    with pytest.raises(UserError) as told:
        readable([given])
    assert WRITTEN[given] in str(told.value)
    value_of(WRITTEN[given])  # what it says to write can be read


@pytest.mark.parametrize(
    "whole", ["protocol.optimizer={_target_: torch.optim.Adam, lr: 0.01}", "paths.results=my runs"]
)
def test_what_the_shell_split_is_put_together(whole: str) -> None:
    with pytest.raises(UserError) as told:
        readable(whole.split(" "))
    assert f"'{whole}'" in str(told.value)


def test_results_lie_where_they_were_asked_for(kd: Kdbench) -> None:
    where = "läufe (v2), köln = [x"
    assert kd.run("-m", "method=scratch", f"paths.results='{where}',b").code == 0
    assert len(list((kd.root / where / "records").iterdir())) == len(list((kd.root / "b" / "records").iterdir())) == 1
    assert kd.run("method=scratch", "paths.results=läufe (v3)").code == 0
    assert list((kd.root / "läufe (v3)" / "records").iterdir())


SENTENCES: dict[str, list[str]] = {
    "seed": ["'seed' is no setting", "KEY=VALUE"],
    "=3": ["'=3' is no setting"],
    "🙂=1": ["no setting '🙂'"],
    "~seed": ["lacks 'seed'"],
    "~nope": ["no setting 'nope'"],
    "~method": ["no method was chosen"],
    "~hydra": ["cannot be left out"],
    "+seed=1": ["there already", "without the plus"],
    "+pair=resnet20-resnet8": ["there already", "without the plus"],
    "pair=null": ["pair=null", "~logger"],
    "experiment=3": ["experiment=3", "by name"],
    "pair=resnet20-resnet8,resnet56-resnet20": ["more than one value: add -m"],
    "seed=range(0,2)": ["more than one value: add -m"],
    "method.scratch.weights.ce=1,5": ["write method.scratch.weights.ce=1.5, with a point"],
    "paths.results=a,b": ["write \"paths.results='a,b'\""],
    "paths.results=2024": ["write \"paths.results='2024'\""],
    "seed=0,1": ["seed=[0,1]"],
    "seed=${nope": ["no value for that setting"],
    "seed=🙂": ["seed=🙂", "non-negative integer"],
    "hydra.mode=nope": ["hydra.mode=nope"],
    "--config-name nope": ["leave out --config-name"],
    "--config-path /nope": ["leave out --config-name"],
}
INTERNALS = re.compile(
    r"Lexer|Exception\b|mismatched input|viable|extraneous|EOF|object_type|full_key|NoneType|omegaconf|pydantic|"
    r"hydra\.errors"
)


@pytest.mark.parametrize("given", SENTENCES)
def test_sentences_without_internals(kd: Kdbench, given: str) -> None:
    sentence = one_sentence(kd.run("method=scratch", *shlex.split(given, posix=False)), *SENTENCES[given])
    assert not INTERNALS.search(sentence)
    assert not kd.results.exists()


def test_the_nearest_setting_is_one_that_is_read(kd: Kdbench) -> None:
    sentence = one_sentence(kd.run("method=kd", "temperature=2"), "did you mean method.kd.temperature?")
    assert "search" not in sentence
    (kd.root / "mine.py").write_text(OWN_METHOD)
    (kd.root / "my conf" / "method").mkdir(parents=True)
    (kd.root / "my conf" / "method" / "mine.yaml").write_text(OWN_YAML)
    sentence = one_sentence(
        kd.run("--config-dir", "my conf", "method=mine", "method.mine.pwoer=2"), "did you mean method.mine.power"
    )
    assert "search" not in sentence
    unknown = kd.run("--config-dir=my conf", "method=mine", "method.kd.temperature=2")
    one_sentence(unknown, "'kd' is not among those of method=[...]")


# ---- files of the user's ----------------------------------------------------------------------------------------

HEADER = "'# @package method.mine'"
BROKEN = {
    "cut": (b"# @package method.mine\n_target_: [\n", ["mine.yaml, line 3", "mend the YAML"]),
    "tab": (b"# @package method.mine\nweights:\n\tce: 1\n", ["mine.yaml, line 3", "mend the YAML"]),
    "tag": (
        b'# @package method.mine\n_target_: !!python/object/apply:os.system ["true"]\n',
        ["line 2", "mend the YAML"],
    ),
    "twice": (b"# @package method.mine\na: 1\na: 2\n", ["mine.yaml, line 3", "duplicate key a"]),
    "latin": ("# @package method.mine\n_target_: kö\n".encode("latin-1"), ["mine.yaml is no UTF-8 text"]),
    "late": (
        b"# mine\n# @package method.mine\n_target_: mine.Mine\n",
        ["mine.yaml", "'# @package method.mine'", "first line"],
    ),
    "none": (b"_target_: mine.Mine\nweights: {ce: 1}\n", ["mine.yaml", "'# @package method.mine'", "first line"]),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_yaml_is_told_by_name(kd: Kdbench, how: str) -> None:
    text, words = BROKEN[how]
    (kd.root / "conf" / "method").mkdir(parents=True)
    (kd.root / "conf" / "method" / "mine.yaml").write_bytes(text)
    one_sentence(kd.run("--config-dir", "conf", "method=[scratch,mine]"), *words)


def test_a_header_that_an_experiment_meets_too_late(kd: Kdbench) -> None:
    for name, text in {
        "method/mine": "# mine\n# @package method.mine\n_target_: mine.Mine\nweights: {ce: 1}\n",
        "experiment/x": "# @package _global_\ndefaults:\n  - override /method: [scratch, mine]\n",
    }.items():
        (kd.root / "conf" / f"{name}.yaml").parent.mkdir(parents=True)
        (kd.root / "conf" / f"{name}.yaml").write_text(text)
    one_sentence(
        kd("run", "--config-dir", "conf", "experiment=x"), "lacks the header '# @package method.", "first line"
    )


@pytest.mark.parametrize("missing", ["leaf", "title"])
def test_a_method_that_does_not_say_what_it_is(kd: Kdbench, missing: str) -> None:
    (kd.root / f"without_{missing}.py").write_text(re.sub(rf"    {missing} = .*\n", "", OWN_METHOD))
    (kd.root / "conf" / "method").mkdir(parents=True)
    (kd.root / "conf" / "method" / "mine.yaml").write_text(OWN_YAML.replace("own_method", f"without_{missing}"))
    one_sentence(kd("methods", "--config-dir", "conf"), "method 'mine'", f"does not say its {missing}")
    one_sentence(kd.run("--config-dir", "conf", "method=mine"), "method 'mine'", f"does not say its {missing}")
    assert not kd.results.exists()


@pytest.mark.parametrize("text", [b"chapters: [", b"", b"chapters: 3", b"\xff", b"- a", b"chapters: []\nmore: 1"])
def test_a_damaged_taxonomy(kd: Kdbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "taxonomy.yaml").write_bytes(text)
    monkeypatch.setattr(kdbench.taxonomy, "files", lambda package: tmp_path)
    monkeypatch.setattr(kdbench.taxonomy, "load_taxonomy", kdbench.taxonomy.load_taxonomy.__wrapped__)
    one_sentence(kd("methods"), "taxonomy.yaml is damaged", "install kdbench anew")


# ---- output that nobody can take --------------------------------------------------------------------------------


class Closed(io.RawIOBase):
    """A file on which nothing can be written any more."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise self.error


def test_letters_that_a_terminal_lacks_are_escaped(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["run", *SMALL, "method=scratch", "paths.results=köln"]) == 0
    sys.stdout.flush()
    text = raw.getvalue().decode("ascii")
    assert r"k\xf6ln" in text
    assert "1 trained" in text


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_a_grid_outlives_its_output(
    kd: Kdbench, monkeypatch: pytest.MonkeyPatch, error: OSError, code: int, said: str
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Closed(error), 16), write_through=True))
    kd._capfd.readouterr()
    assert main(["run", *SMALL, "method=scratch", "seed=[0,1]"]) == code
    assert len(kd.records()) == 2
    told = kd._capfd.readouterr().err
    assert said in told
    assert bool(said) == bool(told)


@pytest.mark.parametrize(("to", "code"), [("--help | true", 0), ("--help > /dev/full", 1), ("--help >&-", 0)])
def test_real_output_that_cannot_be_written(kd: Kdbench, to: str, code: int) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    line = f"{shlex.quote(sys.executable)} -m kdbench.cli {to}; echo ${{PIPESTATUS[0]}} >&2"
    env = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    done = subprocess.run(["bash", "-c", line], env=env, cwd=kd.root, capture_output=True, text=True, check=False)
    *told, status = done.stderr.splitlines()
    assert int(status) == code
    assert len(told) == code, told


def test_the_current_folder_is_gone(kd: Kdbench, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    one_sentence(kd("methods"), "the current folder cannot be used", "change to another")


# ---- what nobody foresaw ----------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def command(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(program, "command", command)


def test_a_bug_is_told_with_a_file_to_report(alone: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("surprise\nin two lines"))
    sentence = one_sentence(alone("methods"), "this is a bug in kdbench (ZeroDivisionError: surprise in two lines)")
    (log,) = (alone.cache / "errors").iterdir()
    assert str(log) in sentence
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert "surprise" in text
    monkeypatch.setenv("KDBENCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        alone("methods")


def test_a_bug_that_cannot_be_kept_is_printed(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("surprise"))
    monkeypatch.setenv("KDBENCH_CACHE", "/dev/null/nowhere")
    result = kd("methods")
    assert result.code == 1
    assert "please report it with this:\nTraceback" in result.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 74.5 GiB"), ["not enough memory", "74.5 GiB", "ulimit -v"]),
        (MemoryError(), ["not enough memory", "ulimit -v"]),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ["not enough memory", "2 GiB"]),
        (ImportError("libtorch_cpu.so: failed to map segment"), ["libtorch_cpu.so", "ulimit -v"]),
        (yaml.YAMLError("odd"), ["odd", "mend the YAML"]),
    ],
)
def test_what_is_no_bug(kd: Kdbench, monkeypatch: pytest.MonkeyPatch, error: Exception, words: list[str]) -> None:
    failing(monkeypatch, error)
    assert "bug" not in one_sentence(kd("methods"), *words)


def test_a_cell_without_memory_is_told(kd: Kdbench) -> None:
    hungry = (
        OWN_METHOD
        + """
    def build(self, student, teacher, data):
        import torch

        self.bank = torch.zeros(10**14)
"""
    )
    (kd.root / "hungry.py").write_text(hungry)
    (kd.root / "conf" / "method").mkdir(parents=True)
    (kd.root / "conf" / "method" / "mine.yaml").write_text(OWN_YAML.replace("own_method", "hungry"))
    result = kd.run("--config-dir", "conf", "method=[scratch,mine]")
    sentence = one_sentence(result, "failed: mine", "not enough memory")
    assert "alloc" not in sentence
    assert [record.cell.method for record in kd.records()] == ["scratch"]


@pytest.mark.parametrize("gigabytes", [1, 2])
def test_a_limit_on_memory_is_told(kd: Kdbench, gigabytes: int) -> None:
    line = f"ulimit -v {gigabytes << 20}; exec {shlex.quote(sys.executable)} -m kdbench.cli run method=scratch"
    env = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", line], env=env, cwd=kd.root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("kdbench: ")
    assert "ulimit -v" in done.stderr
    assert len(done.stderr.splitlines()) == 1
