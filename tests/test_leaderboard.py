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
from typing import Any

import pytest
from factories import make_record

from kdbench.report.leaderboard import CURVE_POINTS, HTML_MARKER, pack_curve, render
from kdbench.report.model import build_tables
from kdbench.results.record import Record, dump
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
    assert set(re.findall(r"https?://[^\s\"'`]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "url(" not in text
    assert "@import" not in text
    for tag, attributes in Page(text).elements:
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
    assert [sealed(text) for text in executed] == [rules["script-src"]]
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
    script = next(text for tag, a, text in page(controls()).raw if tag == "script" and "type" not in a)
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
    assert "table" not in [tag for tag, _ in found.elements]
    assert found.json("payload")["rows"] == {}


def test_page_has_landmarks_names_and_a_skip_link() -> None:
    elements = page(controls()).elements
    tags = [tag for tag, _ in elements]
    assert tags.count("main") == tags.count("header") == tags.count("footer") == tags.count("h1") == 1
    assert dict(elements)["html"]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in elements:
        if attributes.get("role") == "tab":
            assert attributes["aria-controls"] in ids
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
