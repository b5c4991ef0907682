"""The leaderboard as a file: what stands in it, that it is inert and whole, and the numbers that the page is given."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_measured, make_record

from kdbench.docs import Docs, Work
from kdbench.measures import Measure
from kdbench.report import leaderboard
from kdbench.report.across import across_pairs
from kdbench.report.leaderboard import HTML_MARKER, render
from kdbench.report.leaderboard.curves import CURVE_POINTS, pack_curve
from kdbench.report.leaderboard.facing import ROWS
from kdbench.report.model import build_tables
from kdbench.results.claims import STATUSES, Claim, compare_claims
from kdbench.results.record import Record, dump, pack_correct
from kdbench.taxonomy import load_taxonomy

EVIL = "</script><script>alert(1)</script><!--<img src=x onerror='alert(2)'>\"&amp;"
T_3 = 4.302652729911275
"""97.5 % quantile of the t distribution with 2 degrees of freedom: √(2 · 0.95² / (1 - 0.95²))."""


@dataclass(frozen=True)
class Known:
    name: str
    leaf: str
    title: str = "A method"
    paper: str | None = None
    extension: bool = False
    tasks: frozenset[str] = frozenset({"classification"})
    path: str = "methods.logits.known.Known"
    survey: Mapping[str, str] = field(default_factory=dict)
    docs: Docs = field(default_factory=lambda: Docs(None, "", ()))

    def defaults(self, teacher: str | None, student: str) -> Mapping[str, Any]:
        return {}


class Page(HTMLParser):
    """Elements with their attributes, in order, and the text of those that are not parsed further."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs)) if tag in ("script", "style") else None
        if self._open:
            self.raw.append((*self._open, ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            tag, attributes, text = self.raw[-1]
            self.raw[-1] = (tag, attributes, text + data)
        else:
            self.text += data

    def json(self, element_id: str) -> Any:
        return json.loads(next(text for _, attributes, text in self.raw if attributes.get("id") == element_id))


def page(records: list[Record], *known: Known) -> Page:
    return Page(render(build_tables(records), known))


def rows(payload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by method."""
    columns = payload["rows"]
    return {
        method: {key: values[index] for key, values in columns.items()}
        for index, method in enumerate(columns["method"])
    }


def controls() -> list[Record]:
    scratch = {"leaf": "controls", "control": "scratch"}
    found = []
    for seed, (start, kd) in enumerate([(69.0, 70.5), (69.2, 71.3), (69.4, 71.2)]):
        cell = {"teacher": None, "pair": "resnet20"}
        found.append(make_record("scratch", seed, start, info=scratch, teacher=None, cell=cell))
        found.append(make_record("kd", seed, kd))
    return found


def unpack(packed: str, low: float, high: float) -> list[float | None]:
    """The inverse of `pack_curve`, from the standard library's base 64."""
    words = [
        int.from_bytes(base64.urlsafe_b64decode("AA" + packed[i : i + 2]), "big") for i in range(0, len(packed), 2)
    ]
    return [None if word == 4095 else low + (high - low) * word / 4094 for word in words]


# ---- the file -------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_the_network() -> None:
    text = render(build_tables(controls()), [])
    names = {each for each in re.findall(r"https?://[^\s\"'`]*", text) if not each.startswith("http://www.w3.org/")}
    names -= {each for each in names if each.startswith("http://www.apache.org/licenses/")}  # in a licence
    # the paper, which a reader may open, and the first line of a library
    assert names == {"https://arxiv.org/abs/1503.02531", "https://d3js.org"}
    found = Page(text)
    ours = [text for tag, _, text in found.raw if tag == "style"] + [found.raw[-1][2]]
    assert not [text for text in ours if "url(" in text or "@import" in text]
    for tag, attributes in found.elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#main") in ("#main", "data:,")
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes  # the policy would refuse it


def test_policy_admits_what_stands_in_the_file_and_nothing_else() -> None:
    found = page(controls())
    policy = next(a["content"] for t, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))

    def sealed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    executed = [text for tag, a, text in found.raw if tag == "script" and a.get("type") != "application/json"]
    styles = [text for tag, _, text in found.raw if tag == "style"]
    assert rules["default-src"] == "'none'"
    assert [sealed(text) for text in executed] == rules["script-src"].split()
    assert len(executed) == 6
    assert [sealed(text) for text in styles] == [rules["style-src"]]
    assert "unsafe" not in (policy or "")


def test_same_records_give_the_same_bytes_in_any_order() -> None:
    records = controls()
    shuffled = records[:]
    random.Random(1).shuffle(shuffled)
    known = [Known("kd", "logits/softened-labels"), Known("at", "intermediate/features")]
    text = render(build_tables(records), known)
    assert text == render(build_tables(shuffled), known[::-1])
    assert text.startswith(HTML_MARKER)
    assert "\r" not in text
    assert text.encode()  # no lone surrogates


def test_script_builds_no_markup_from_text() -> None:
    script = [text for tag, a, text in page(controls()).raw if tag == "script" and "type" not in a][-1]
    assert "function Results(" in script  # ours; the libraries know these words, and the policy forbids what they name
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|\bimport\(", script)


@pytest.mark.parametrize("name", [EVIL, "]]>", "<!--<script>", "\u2028 \u202eevil", "'\"`${1}", "a,b|c"])
def test_names_are_inert_wherever_they_stand(name: str) -> None:
    plain = page(controls())
    record = make_record(
        name,
        cell={"pair": name, "dataset": name, "protocol": name, "student": name},
        teacher={"name": name},
        config={"method": {"note": name}, "protocol": {"name": name}},
        info={"leaf": name, "cls": name, "paper": name, "control": None, "needs": [name]},
        environment={"device": name},
        curves={name: [1.0, 2.0]},
    )
    diverged = make_record(name, 1, cell=record.cell.model_dump(exclude={"id", "seed"}), status="diverged", reason=name)
    found = page([record, diverged], Known(name, name, title=name))
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    payload = found.json("payload")
    assert name in payload["rows"]["method"]
    assert name in payload["records"]["reason"]
    assert {payload["tables"][0][key] for key in ("pair", "dataset", "protocol")} == {name}
    assert name in {curve[0] for curves in found.json("payload-curves") for curve in curves}


def test_empty_store_is_a_page_that_says_so() -> None:
    found = page([])
    assert "The store has no records yet" in found.text
    assert "No records." in found.text
    assert found.json("payload")["rows"] == {}


def test_page_has_landmarks_names_and_a_skip_link() -> None:
    elements = page(controls()).elements
    tags = [tag for tag, _ in elements]
    assert tags.count("main") == tags.count("header") == tags.count("h1") == 1
    assert dict(elements)["html"]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    first_link = next(attributes for tag, attributes in elements if tag == "a")
    assert first_link["href"] == "#main"


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_row_has_the_numbers_of_its_seeds() -> None:
    payload = page(controls()).json("payload")
    kd, scratch = rows(payload)["kd"], rows(payload)["scratch"]
    differences = [1.5, 2.1, 1.8]
    assert kd["n"] == 3
    assert kd["reached"] == pytest.approx(71.0)
    deviation = math.sqrt(((70.5 - 71) ** 2 + (71.3 - 71) ** 2 + (71.2 - 71) ** 2) / 2)
    assert kd["half"] == pytest.approx(T_3 * deviation / math.sqrt(3), abs=1e-3)
    assert kd["ds"] == pytest.approx(sum(differences) / 3)
    half = T_3 * 0.3 / math.sqrt(3)  # standard deviation of 1.5, 1.8, 2.1
    assert kd["dsHalf"] == pytest.approx(half, abs=1e-3)
    # p of t = 1.8 / (0.3 / √3) = 6√3 with 2 degrees of freedom, from the closed form 1 - t / √(t² + 2)
    t = 6 * math.sqrt(3)
    assert kd["dsP"] == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-4)
    gap = 72.34 - 69.2
    assert kd["gap"] == pytest.approx(1.8 / gap, abs=1e-4)
    assert kd["gapLow"] == pytest.approx((1.8 - half) / gap, abs=1e-3)
    assert kd["gapHigh"] == pytest.approx((1.8 + half) / gap, abs=1e-3)
    assert (kd["macs"], kd["params"], kd["minutes"], kd["images"]) == (41_000_000, 278_324, 2.0, 100_000)
    assert (kd["sf"], kd["tf"], kd["extra"]) == (1.0, 1.0, 0)
    assert kd["dk"] is None
    assert scratch["ds"] is None
    assert scratch["gap"] is None
    assert scratch["dk"] == pytest.approx(-1.8)
    assert (kd["role"], scratch["role"]) == ("control", "control")


def test_one_seed_has_no_interval_and_no_test() -> None:
    row = rows(page([*controls(), make_record("dkd", 0, 72.0)]).json("payload"))["dkd"]
    assert row["reached"] == 72.0
    assert row["half"] is row["dsHalf"] is row["dsP"] is row["gapLow"] is row["gapHigh"] is None
    assert row["gap"] == pytest.approx((72 - 69.2) / (72.34 - 69.2), abs=1e-4)


def test_gap_has_no_interval_where_seeds_are_not_paired() -> None:
    more = [make_record("dkd", seed, 71 + seed / 10) for seed in range(4)]  # scratch has no seed 3
    row = rows(page([*controls(), *more]).json("payload"))["dkd"]
    assert (row["n"], row["dsN"]) == (4, 3)
    assert row["gap"] is not None
    assert row["gapLow"] is row["gapHigh"] is None


def test_diverged_runs_count_and_are_told_with_their_reason() -> None:
    lost = [make_record("dkd", seed, status="diverged", reason=f"at {seed}") for seed in range(2)]
    payload = page([*controls(), *lost]).json("payload")
    row = rows(payload)["dkd"]
    assert (row["n"], row["diverged"]) == (0, 2)
    assert row["reached"] is row["half"] is row["gap"] is row["ds"] is None
    assert row["macs"] == 41_000_000
    assert [payload["records"]["reason"][run] for run in row["records"]] == ["at 0", "at 1"]
    assert [payload["records"]["last"][run] for run in row["records"]] == ["-", "-"]


def test_runs_are_told_whole_and_the_hash_is_that_of_the_file() -> None:
    records = controls()
    payload = page(records).json("payload")
    runs = payload["records"]
    assert runs["cell"] == sorted(record.cell.id for record in records)
    for record in records:
        run = runs["cell"].index(record.cell.id)
        assert json.loads(dump(record))["sha256"].startswith(runs["sha"][run])
        assert len(runs["sha"][run]) == 16
        assert runs["seed"][run] == record.cell.seed
        assert record.metrics
        assert float(runs["last"][run]) == pytest.approx(record.metrics.last, abs=0.005)
        assert float(runs["oracle"][run]) == pytest.approx(record.metrics.oracle, abs=0.005)
        assert payload["environments"][runs["environment"][run]] == record.environment.model_dump(mode="json")
    row = rows(payload)["kd"]
    config = dict(payload["configs"][number] for number in row["config"])
    assert config == {key: value for key, value in records[1].config.items() if key != "seed"}


def test_runs_without_a_teacher_stand_in_every_table_but_once_in_the_file() -> None:
    others = [make_record("kd", seed, 70.0, teacher={"sha256": "b" * 64, "accuracy": 75.0}) for seed in range(3)]
    others = [
        r.model_copy(update={"cell": r.cell.model_copy(update={"id": f"{i:016x}"})}) for i, r in enumerate(others)
    ]
    payload = page([*controls(), *others]).json("payload")
    assert len(payload["tables"]) == 2
    assert {table["teacher"][1] for table in payload["tables"]} == {"a" * 12, "b" * 12}
    assert sorted(payload["rows"]["method"]) == ["kd", "kd", "scratch", "scratch"]
    assert len(payload["records"]["cell"]) == 9
    assert len(set(payload["rows"]["id"])) == 4


def test_settings_of_a_method_are_rows_of_their_own() -> None:
    hot = [make_record("kd", seed, 70.0, config={"method": {"temperature": 8.0}}) for seed in range(2)]
    columns = page([*controls(), *hot]).json("payload")["rows"]
    found = {setting for method, setting in zip(columns["method"], columns["setting"], strict=True) if method == "kd"}
    assert found == {"temperature=4", "temperature=8"}


# ---- the survey -----------------------------------------------------------------------------------------------------


def test_every_leaf_of_the_survey_is_there_filled_or_open() -> None:
    payload = page(controls(), Known("kd", "logits/softened-labels"), Known("new", "multi-teacher/peers")).json(
        "payload"
    )
    leaves = {leaf["id"]: leaf for chapter in payload["chapters"] for leaf in chapter["leaves"]}
    assert list(leaves) == [leaf.id for leaf in load_taxonomy().leaves]
    assert [method[0] for method in leaves["logits/softened-labels"]["methods"]] == ["kd"]
    assert [method[0] for method in leaves["controls"]["methods"]] == ["scratch"]  # known from its records alone
    assert [method[0] for method in leaves["multi-teacher/peers"]["methods"]] == ["new"]
    for leaf in load_taxonomy().leaves:
        assert leaves[leaf.id]["open"] == leaf.open


def test_leaf_of_a_third_party_gets_a_place() -> None:
    mine = make_record("mine", 0, 70.0, info={"leaf": "my/leaf", "control": None})
    payload = page([*controls(), mine]).json("payload")
    last = payload["chapters"][-1]
    assert last["title"] == "third-party"
    assert [leaf["id"] for leaf in last["leaves"]] == ["my/leaf"]
    assert rows(payload)["mine"]["role"] == "third-party"


def test_leaf_that_its_method_has_left_still_shows_the_records() -> None:
    old = make_record("moved", 0, 70.0, info={"leaf": "old/leaf", "control": None})
    payload = page([*controls(), old], Known("moved", "graph/none")).json("payload")
    assert "old/leaf" in {leaf["id"] for chapter in payload["chapters"] for leaf in chapter["leaves"]}


def test_methods_stand_with_their_work_idea_and_equation() -> None:
    work = Work("Knowledge distillation", "Hinton", "NIPS 2014", "2014", "https://arxiv.org/abs/1503.02531")
    docs = Docs(work, "Soft targets teach.", ("L = `kl`(t_i)",))
    payload = page(controls(), Known("kd", "logits/softened-labels", path="methods.logits.kd.KD", docs=docs)).json(
        "payload"
    )
    assert payload["docs"] == {
        "methods.logits.kd.KD": {
            "work": {
                "title": "Knowledge distillation",
                "authors": "Hinton",
                "venue": "NIPS 2014",
                "year": "2014",
                "url": "https://arxiv.org/abs/1503.02531",
            },
            "idea": [["text", "Soft targets teach."]],
            "equations": [[["text", "L = "], ["code", "kl"], ["text", "(t"], ["sub", "i"], ["text", ")"]]],
        }
    }


def test_a_method_of_ones_own_is_not_the_surveys() -> None:
    leaf = "logits/softened-labels"
    cited = load_taxonomy().find(leaf).cited[0]
    known = [
        Known("cited", leaf, paper=cited),
        Known("uncited", leaf, paper="nobody2030nothing"),
        Known("mine", leaf, paper=cited, path="mine.Mine"),
    ]
    [found] = [
        entry["methods"]
        for chapter in page(controls(), *known).json("payload")["chapters"]
        for entry in chapter["leaves"]
        if entry["id"] == leaf
    ]
    roles = {name: role for name, _, role, _ in found}
    assert {name: roles[name] for name in ("cited", "uncited", "mine")} == {
        "cited": "survey",
        "uncited": "extension",
        "mine": "third-party",
    }


# ---- ranks, pairs of rows, pairs of networks, claims ----------------------------------------------------------------


def test_equal_means_share_a_rank_and_what_diverged_has_none() -> None:
    more = [make_record("dkd", seed, top) for seed, top in enumerate([71.2, 70.5, 71.3])]  # kd's, in another order
    lost = make_record("lost", 0, status="diverged")
    found = rows(page([*controls(), *more, lost]).json("payload"))
    assert {name: row["rank"] for name, row in found.items()} == {"kd": 1, "dkd": 1, "scratch": 3, "lost": None}


def test_the_lowest_error_has_rank_one() -> None:
    error = Measure("AbsRel", higher=False, unit="")
    records = [make_measured(name, 0, value, error) for name, value in (("kd", 0.2), ("at", 0.1))]
    found = rows(page(records).json("payload"))
    assert (found["at"]["rank"], found["kd"]["rank"]) == (1, 2)


def faced(records: list[Record]) -> tuple[list[str], dict[str, Any]]:
    """Methods in the order of the pairs, and what the page holds of the pairs."""
    found = page(records)
    [facing] = found.json("payload-facing")
    methods = found.json("payload")["rows"]["method"]
    return [methods[row] for row in facing["rows"]], facing


def test_two_rows_by_seed() -> None:
    names, facing = faced(controls())
    assert names == ["scratch", "kd"]
    half = T_3 * 0.3 / math.sqrt(3)  # differences of 1.5, 2.1 and 1.8
    assert facing["differences"] == [f"-1.80 ± {half:.2f}"]
    t = 6 * math.sqrt(3)
    p = 1 - t / math.sqrt(t * t + 2)
    test = f"p = {p:.3f}, paired t-test over 3 seeds, not corrected for other comparisons"
    assert [facing["tests"][index] for index in facing["test"]] == [test]


def test_two_rows_by_example() -> None:
    def correct(*right: int) -> dict[str, Any]:
        return pack_correct(np.isin(np.arange(10), right)).model_dump()

    answers = {
        ("scratch", 0): (0, 1, 2, 3),
        ("kd", 0): (0, 1, 2, 4, 5, 6),
        ("scratch", 1): (0, 9),
        ("kd", 1): (0, 8),
        ("kd", 2): (1, 2, 3),  # scratch has no such seed
    }
    records = [
        make_record(
            name,
            seed,
            10.0 * len(right),
            correct=correct(*right),
            dataset={"n_test": 10},
            metrics={"last": 10.0 * len(right), "oracle": 100.0},
        )
        for (name, seed), right in answers.items()
    ]
    names, facing = faced(records)
    assert names == ["scratch", "kd"]
    # seed 0: 3 both, 1 only the first, 3 only the second; seed 1: 1, 1, 1
    assert facing["examples"] == [[4, 2, 4, 10]]


def test_scores_of_examples_are_not_right_or_wrong() -> None:
    error = Measure("AbsRel", higher=False, unit="")
    records = [make_measured(name, 0, 0.1, error, scores=[0.1, 0.2]) for name in ("kd", "at")]
    assert faced(records)[1]["examples"] == [None]


def test_rows_without_a_common_seed_are_not_paired() -> None:
    _, facing = faced([make_record("at", 0, 70.0), make_record("kd", 1, 71.0)])
    assert facing["differences"] == [None]
    assert facing["examples"] == [None]
    assert facing["tests"] == ["no finished seed in common, so nothing is paired"]


def test_a_large_table_faces_its_controls_and_its_best() -> None:
    records = [make_record(f"m{index:03d}", 0, 60.0 + index / 100) for index in range(ROWS + 20)]
    names, facing = faced([*controls(), *records])
    assert len(names) == ROWS
    assert {"scratch", "kd"} <= set(names)
    assert f"m{ROWS + 19:03d}" in names
    assert "m000" not in names
    assert len(facing["differences"]) == len(facing["test"]) == len(facing["examples"]) == ROWS * (ROWS - 1) // 2


def test_across_pairs_is_that_of_the_tables() -> None:
    other = {"pair": "resnet56-resnet8", "student": "resnet8"}
    records = [*controls()]
    for seed in range(2):
        records.append(make_record("kd", seed, 60.0 + seed, cell=other, config={"pair": other}))
    payload = page(records).json("payload")
    [(cohort, sheet)] = payload["across"].items()
    assert {table["cohort"] for table in payload["tables"]} == {cohort}
    [expected] = across_pairs(build_tables(records))
    assert sheet["title"] == expected.title
    assert sheet["columns"][-1] == "average rank"
    assert sheet["rows"] == [[cell.text for cell in row] for row in expected.grids[-1].blocks[0].rows]
    assert payload["rows"]["main"] == [True, True, True]


def test_rows_know_the_claims_that_they_answer() -> None:
    claim = Claim(
        method="KD",
        config="kd",
        reported_by="a",
        teacher="resnet56",
        student="resnet20",
        dataset="cifar100",
        metric="top1_acc",
        value=70.66,
        selection="last",
        epochs="240",
        kd_term="yes",
        source="a",
    )
    records = controls()
    text = render(build_tables(records), [], compare_claims([claim], records))
    payload = Page(text).json("payload")
    assert rows(payload)["kd"]["claims"] == [0]
    assert rows(payload)["scratch"]["claims"] == []
    [row] = payload["claims"]["rows"]
    assert row[payload["claims"]["number"]] == "70.66"
    assert row[payload["claims"]["status"]] in STATUSES
    assert "published" in [column["key"] for column in payload["columns"]]
    assert "published" not in [column["key"] for column in page(records).json("payload")["columns"]]


# ---- the libraries --------------------------------------------------------------------------------------------------


def test_vendored_libraries_are_those_that_were_published() -> None:
    folder = Path(leaderboard.__file__).parent.parent / "vendor"
    listed = re.findall(r"^\| `(\S+)` \| .*? \| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text("utf-8"), re.M)
    assert [name for name, _ in listed] == list(leaderboard.VENDORED)
    for name, sha in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha, name
    licences = {path.name.removesuffix(".LICENSE") for path in folder.glob("*.LICENSE")}
    assert licences == set(leaderboard.LICENSED)
    text = Page(render([], [])).text  # a copy carries them
    for path in folder.glob("*.LICENSE"):
        assert path.read_text("utf-8").strip() in text, path


def test_empty_page_is_small() -> None:
    assert len(render([], [])) < 1_500_000


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_curve_keeps_its_ends_and_its_values() -> None:
    values = [math.sin(epoch / 30) * 40 + 50 for epoch in range(240)]
    low, high, packed = pack_curve(values)
    points = unpack(packed, low, high)
    assert len(points) == CURVE_POINTS
    for index, point in enumerate(points):
        nearest = values[math.floor(index * 239 / 59 + 0.5)]
        assert point == pytest.approx(nearest, abs=(high - low) / 4094 + 1e-2)
    assert points[0] == pytest.approx(values[0], abs=0.02)
    assert points[-1] == pytest.approx(values[-1], abs=0.02)


def test_short_curve_is_kept_point_by_point() -> None:
    low, high, packed = pack_curve([3.0, None, 1.0, 2.0])
    assert (low, high) == (1.0, 3.0)
    assert unpack(packed, low, high) == [3.0, None, 1.0, pytest.approx(2.0)]


@pytest.mark.parametrize(("values", "expected"), [([5.0], [5.0]), ([2.0, 2.0], [2.0, 2.0]), ([None], [None]), ([], [])])
def test_curve_without_spread(values: list[float | None], expected: list[float | None]) -> None:
    low, high, packed = pack_curve(values)
    assert unpack(packed, low, high) == expected


def test_losses_and_the_ranked_accuracy_are_the_curves_shown() -> None:
    curves = {
        "loss/kd": [2.0, 1.0],
        "test/top1": [1.0, 2.0],
        "test/top5": [3.0, 4.0],
        "val/top1": [5.0, 6.0],
        "empty": [],
    }
    record = make_record("kd", 0, 70.0)
    record = record.model_copy(update={"curves": curves})
    [shown] = page([record]).json("payload-curves")
    assert [(name, length) for name, length, *_ in shown] == [("loss/kd", 2), ("test/top1", 2), ("val/top1", 2)]
