"""Help, lists and errors in names: what they say, that they fit, and that nothing heavy is imported to say it."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, Kdbench
from test_cli import one_sentence

import kdbench
from kdbench.cli import helps, program
from kdbench.cli.jobs import check_choices
from kdbench.declared import declared
from kdbench.paths import conf_dir
from kdbench.registry import Entry, methods
from kdbench.taxonomy import load_taxonomy

COMMANDS = ("run", "methods", "teacher", "teacher list", "teacher train", "teacher cache", "data", "data list")
COMMANDS += ("data prepare", "data verify", "report", "compare", "bench", "latency", "completion")
HEAVY = ("torch", "torchvision", "pytorch_lightning", "timm", "pandas", "sklearn", "wandb")

LIGHT = [
    [],
    ["--help"],
    ["--version"],
    *([*command.split(), "--help"] for command in COMMANDS),
    ["methods"],
    ["methods", "4.2"],
    ["methods", "--json"],
    ["data", "list"],
    ["teacher", "list"],
    ["run", "method=kdd"],
    ["run", "method=[kd,nope]", "-m"],
    ["run", "pair=resnet56-resnet21"],
    ["teacher", "train", "dataset=cifar"],
    ["nope"],
    ["completion", "bash"],
]
"""Commands that answer at once."""

ALL = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
sys.path.insert(0, "")
from kdbench.cli import main
heavy, before = json.loads(sys.argv[2]), set()
for args in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main(args)
    print(args, sorted(({name.partition(".")[0] for name in sys.modules} & set(heavy)) - before))
    before |= {name.partition(".")[0] for name in sys.modules}
"""


def test_what_answers_at_once_imports_nothing_heavy(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(ROOT), "KDBENCH_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", ALL, json.dumps(LIGHT), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(LIGHT)
    assert [line for line in lines if not line.endswith(" []")] == []


# ---- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_of_its_own_with_examples(
    kd: Kdbench, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = kd(*command.split(), "--help")
    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith(f"usage: kdbench {command} ")
    if command not in ("data list", "data verify", "teacher list"):  # which take no more than a name
        assert re.search(r"^examples", result.out, re.M)
    assert max(map(len, result.out.splitlines())) <= 81


def test_flags_are_explained() -> None:
    def options(parser: Any) -> list[Any]:
        found = []
        for action in parser._actions:
            if isinstance(action.choices, dict) and action.dest not in ("shell",):
                for name, below in action.choices.items():
                    if hasattr(below, "_actions") and f"{parser.prog} {name}".removeprefix("kdbench ") not in COMPOSED:
                        found += options(below)
            else:
                found.append((parser.prog, action))
        return found

    COMPOSED = set(helps.COMPOSED)
    unexplained = [(prog, action.dest) for prog, action in options(program.parser()) if not action.help]
    assert unexplained == []


def test_bare_shows_help(kd: Kdbench) -> None:
    for words in ([], ["teacher"], ["data"]):
        result = kd(*words)
        assert result.out == kd(*words, "--help").out
        assert result.code == 2


def test_the_examples_of_help_compose(kd: Kdbench) -> None:
    tried = 0
    for name in helps.COMPOSED:
        shown = kd(*name.split(), "--help").out.partition("how to say it")[0]
        for settings in re.findall(r"^  (\S.*?)(?:  +\S.*)?$", shown, re.M):
            args = [arg for arg in shlex.split(settings) if arg not in ("-m", "--all")]
            if "--config-dir" in args:
                (kd.root / "myconf" / "method").mkdir(parents=True)
                (kd.root / "myconf" / "method" / "mine.yaml").write_text("# @package method.mine\n_target_: x.X\n")
            args = [re.sub(r"^([\w.]+=)([\w.]+),[\w.,]+$", r"\1\2", arg) for arg in args]  # one job of a sweep
            assert kd(*name.split(), *args, "--cfg", "job").code == 0, settings
            tried += 1
    assert tried == sum(len(examples) for _, examples, _ in helps.COMPOSED.values())


def test_other_examples_are_understood(kd: Kdbench) -> None:
    for command in COMMANDS:
        if command in helps.COMPOSED or command == "completion":
            continue
        shown = kd(*command.split(), "--help").out.partition("examples:")[2]
        for line in re.findall(r"^  (kdbench .*?)(?:  +\S|$)", shown, re.M):
            args = shlex.split(line.partition(" | ")[0])[1:]
            if " ".join(args[:2]) not in helps.COMPOSED and args[0] not in helps.COMPOSED:
                assert program.parser().parse_args(args).command


def test_help_names_the_choices_also_of_ones_own(kd: Kdbench) -> None:
    (kd.root / "myconf" / "method").mkdir(parents=True)
    (kd.root / "myconf" / "method" / "minemine.yaml").write_text("# @package method.minemine\n_target_: x.X\n")
    assert "minemine" in kd("run", "--config-dir", "myconf", "--help").out
    said = " ".join(kd("run", "--help").out.split())
    assert "minemine" not in said
    for group in ("method", "pair", "scenario"):
        for path in (conf_dir() / group).glob("*.yaml"):
            assert path.stem in said


# ---- environment variables ----------------------------------------------------------------------------------------


def _read(tree: ast.Module, module: ModuleType | None = None) -> set[str]:
    """Names of environment variables that a module asks for."""
    found = set()
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Subscript)) else ""
        if isinstance(node, ast.Call) and re.match(r"(os\.)?(environ\.get|getenv)\(", text) and node.args:
            found.add(node.args[0])
        elif isinstance(node, ast.Subscript) and re.match(r"(os\.)?environ\[", text):
            found.add(node.slice)
        elif isinstance(node, ast.Compare) and ast.unparse(node).endswith(" os.environ"):
            found.add(node.left)
    return {part.value for node in found for part in ast.walk(node) if isinstance(part, ast.Constant)}


def test_environment_variables_are_documented() -> None:
    asked = set()
    for path in [*ROOT.glob("kdbench/**/*.py"), *ROOT.glob("methods/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        asked |= _read(ast.parse(text))
        if "environ" in text:  # names may be held in constants
            asked |= set(re.findall(r'"([A-Z]{2,}(?:_[A-Z0-9]+)+)"', text))
        asked |= set(re.findall(r"\b(KDBENCH_[A-Z]+)\b", text))
    for path in conf_dir().rglob("*.yaml"):
        asked |= set(re.findall(r"oc\.env:(\w+)", path.read_text(encoding="utf-8")))
    ours = {"_ARGCOMPLETE", "HYDRA_FULL_ERROR", "KINETO_LOG_LEVEL"}  # a shell sets the first, kdbench the others
    assert {"KDBENCH_CACHE", "KDBENCH_DATA", "KDBENCH_DEBUG", "XDG_CACHE_HOME", "DNNL_MAX_CPU_ISA"} <= asked
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = " ".join([*helps.VARIABLES, *helps.VARIABLES.values()])
    for name in sorted(asked - ours):
        family = "SLURM_*" if name.startswith("SLURM_") else name
        assert family in said, name
        assert family in readme, name


# ---- kdbench methods ----------------------------------------------------------------------------------------------

ENTRIES = {entry.name: entry for entry in methods()}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_source_says_what_its_class_says(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.source is not None
    cls = entry.cls
    assert entry.path == f"{cls.__module__}.{cls.__qualname__}"
    for key in ("leaf", "paper", "title", "extension", "control", "needs", "tasks", "added", "earlier", "survey"):
        assert entry.source.values[key] == getattr(cls, key), key
    assert entry.doc.split() == (cls.__doc__ or "").split()
    assert entry.doc
    assert entry.about


OWN = '''"""Mine, all mine (me, 2026)."""
from kdbench.method import Method

class Base(Method):
    needs = frozenset({"labels"})
    title = "Base"

class Plain(Base):
    """L = CE(y, s), as ever."""
    leaf, paper = "controls", ""

class Computed(Base):
    leaf = "con" + "trols"
    paper = ""

class Property(Base):
    leaf = "controls"
    paper = ""
    @property
    def tasks(self):
        return frozenset()

NAMED = "controls"
'''


def test_what_only_running_tells_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_methods", raising=False)
    base = declared("own_methods.Base")
    assert base is not None
    assert base.values["needs"] == {"labels"}  # its own
    assert base.values["tasks"] == {"classification"}  # inherited from `Method`
    assert base.about == "Mine, all mine (me, 2026)."
    assert declared("own_methods.Absent") is None
    assert declared("own_methods.NAMED") is None
    assert declared("pathlib.Path") is None
    assert declared("nowhere.to.be.Found") is None
    conf = tmp_path / "conf" / "method"
    conf.mkdir(parents=True)
    for name in ("Plain", "Computed"):
        (conf / f"{name.lower()}.yaml").write_text(f"# @package method.{name.lower()}\n_target_: own_methods.{name}\n")
    found = {entry.name: entry for entry in methods([tmp_path / "conf"])}
    assert "own_methods" in sys.modules  # of a tuple, or of a sum, only running tells
    for name in ("plain", "computed"):
        assert (found[name].leaf, found[name].needs, found[name].title) == ("controls", {"labels"}, "Base")
        assert found[name].path == f"own_methods.{name.title()}"


BASES = """from kdbench.method import Method

class Shared(Method):
    title, paper = "", ""
    leaf = "controls"
    extension = True
"""
SHORT = '''"""Short."""
from own_bases import Shared

class Mine(Shared):
    """L = 0"""
    title = "Mine"
    paper = ""
'''


def test_what_has_changed_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    bases, code, conf = tmp_path / "own_bases.py", tmp_path / "own_short.py", tmp_path / "conf" / "method" / "mine.yaml"
    conf.parent.mkdir(parents=True)
    bases.write_text(BASES)
    code.write_text(SHORT)
    conf.write_text("_target_: own_short.Mine\ntemperature: 1.0\n")

    def read() -> Entry:
        return next(entry for entry in methods([tmp_path / "conf"]) if entry.name == "mine")

    first = read()
    assert first.source is not None
    assert {*first.source.rests_on} >= {bases, code}
    assert read() is first
    for file, was, now in ((bases, "extension = True", "extension = False"), (code, '"Mine"', '"Ours, now"')):
        file.write_text(file.read_text().replace(was, now))
        second = read()
        assert second is not first
        assert read() is second
        first = second
    assert (first.extension, first.title) == (False, "Ours, now")
    conf.write_text("_target_: own_short.Mine\ntemperature: 22.0\n")
    assert read().settings == {"temperature": 22.0}


def test_the_tree_has_numbers_reasons_and_no_two_alike(kd: Kdbench) -> None:
    out = kd("methods").out
    for leaf in load_taxonomy().leaves:
        assert leaf.heading in out
        if leaf.open:
            assert leaf.open.split(";")[0][:40] in out
    lines = [
        re.sub(r"^[│├└─ ]+\S+  ", "", line) for line in out.splitlines() if re.match(r"[│ ]*[├└]── [a-z]\w*  ", line)
    ]
    assert len(lines) == len(ENTRIES)
    assert len(set(lines)) == len(lines)


def test_all_about_a_leaf(kd: Kdbench) -> None:
    out = kd("methods", "4.2", "--results", str(ROOT / "results")).out
    assert out.startswith("4.2 Knowledge from the intermediate layers")
    for entry in ENTRIES.values():
        assert (f"\n{entry.name}: " in out) == (entry.leaf == "intermediate/features")
    for said in (
        "Attention transfer (Zagoruyko & Komodakis, ICLR 2017, https://arxiv.org/abs/1612.03928) [zagoruyko2016paying]",
        "L = CE(y, s) + β · Σ_stages `at_loss`",
        "at_loss: Mean over B·H·W of (Q(s) - Q(t))²",  # what the equation only names
        "Position: end of each stage",
        str(Path("methods", "intermediate", "at.py")),
        str(Path("conf", "method", "at.yaml")),
    ):
        assert said in out
    best = r"best Δ KD +[+-]\d+\.\d\d ± \d+\.\d\d \(3 seeds, .*significant\) in cifar100 \(.*\), resnet20-resnet8"
    assert re.search(best, out)
    (absent,) = re.findall(r"cited by the survey, not here: (.*)", " ".join(out.split()))
    assert "gao2020residual, changyong2019knowledge, Zhang2017KnowledgePF (what could be read of it" in absent
    assert "zagoruyko2016paying" not in absent


def on(leaves: str) -> set[str]:
    """The methods whose leaf's id begins so."""
    return {name for name, entry in ENTRIES.items() if entry.leaf.startswith(leaves)}


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("rkd", {"rkd"}),
        ("4.1.3", on("logits/strictness")),
        ("4.1", on("logits/")),
        ("logits", on("logits/")),
        ("multi-teacher/amalgamation", on("multi-teacher/amalgamation")),
        ("10.2", set()),
    ],
)
def test_a_section_a_leaf_or_a_method(kd: Kdbench, what: str, names: set[str]) -> None:
    assert set(json.loads(kd("methods", what, "--json").out)["methods"]) == names
    out = kd("methods", what, "--results", str(kd.root)).out
    assert set(re.findall(r"^(\w+): ", out, re.M)) == names
    if not names:
        assert "open: " in out


def test_an_unknown_one(kd: Kdbench) -> None:
    one_sentence(kd("methods", "fitnets"), "no method, leaf or section 'fitnets'", "did you mean fitnet")
    one_sentence(kd("methods", "12.3"), "no method, leaf or section '12.3'")


def test_what_others_are_compared_with_is_said(kd: Kdbench) -> None:
    assert "what others are compared with" in kd("methods", "kd", "--results", str(ROOT / "results")).out


def test_every_method_is_explained(kd: Kdbench) -> None:
    details = json.loads(kd("methods", "--json").out)["methods"]
    for name, facts in details.items():
        assert facts["equations"] or facts["idea"], name
        assert Path(facts["file"]).is_file()
        assert Path(facts["config"]).is_file()
    assert details["dkd"]["equations"][0].startswith("L = CE(y, s) + ramp · (α · TCKD + β · NCKD)")
    assert details["ban"]["idea"].startswith("Generations of one architecture")


# ---- names that there are not -------------------------------------------------------------------------------------

OWN_METHOD = """from methods.logits.kd import KD

class Mine(KD):
    pass
"""


def test_a_name_is_compared_with_ones_own_too(kd: Kdbench) -> None:
    (kd.root / "mine.py").write_text(OWN_METHOD)
    (kd.root / "conf" / "method").mkdir(parents=True)
    (kd.root / "conf" / "method" / "mine.yaml").write_text(
        "# @package method.mine\n_target_: mine.Mine\ntemperature: 4.0\nweights: {ce: 0.1, kd: 0.9}\n"
        "search: {temperature: 'choice(1,2)'}\n"
    )
    own = ["run", "--config-dir", "conf"]
    one_sentence(kd(*own, "method=min"), "no method 'min'", "did you mean mine")
    misspelt = kd(*own, "method=[mine]", "method.mine.temprature=2")
    assert "search" not in one_sentence(
        misspelt, "no setting 'method.mine.temprature'", "did you mean method.mine.temperat"
    )
    unknown = kd(*own, "method=[mine]", "protocol.temperature=2")
    assert "search" not in one_sentence(unknown, "no setting 'protocol.temperature'")


def test_what_is_no_plain_name_is_hydras_to_read() -> None:
    for settings in (
        ["method=[]"],
        ["~logger"],
        ["scenario=null"],
        ["method=[kd, dkd]"],
        ["method='kd'"],
        ["-m", "method=kd,dkd"],
    ):
        check_choices(settings)


# ---- names of data sets, and of the version ------------------------------------------------------------------------


def test_what_is_listed_of_embedded_data_is_so() -> None:
    from kdbench.data.embedded import EMBEDDED
    from kdbench.data.listing import list_datasets, row_of

    listed = {row.name: row for row in list_datasets("/nowhere")}
    for name, make in EMBEDDED.items():
        assert listed[name] == row_of(make(), "embedded", listed[name].sha256)


def test_the_version_is_a_text_and_nothing_else_is_there() -> None:
    assert re.match(r"\d", kdbench.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        kdbench.nope  # noqa: B018
