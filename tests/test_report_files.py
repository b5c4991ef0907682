"""The files of a report: filters, formats, checking, and a large store."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import N_TEST, make_record

from kdbench.errors import UserError
from kdbench.report import check, generate, render, report, select, write
from kdbench.results.claims import load_claims
from kdbench.results.record import Record, dump, pack_correct
from kdbench.results.store import Store, file_name

AT_INFO = {"leaf": "intermediate/features", "control": None, "cls": "methods.intermediate.at.AT"}
ALONE: dict[str, Any] = {"teacher": None, "cell": {"teacher": None, "pair": "resnet20"}, "config": {"pair": None}}


def sample() -> list[Record]:
    return [
        *(make_record("scratch", s, 69.0 + s, info={"leaf": "controls"}, **ALONE) for s in range(2)),
        *(make_record("kd", s, 70.0 + s) for s in range(2)),
        make_record("at", 0, 70.5, info=AT_INFO),
        make_record("rkd", 0, 70.5, info={"leaf": "logits/strictness"}),
        make_record("kd", 0, 80.0, cell={"dataset": "cifar10"}, config={"dataset": {"name": "cifar10"}}),
        make_record("kd", 0, 65.0, cell={"protocol": "lite"}, config={"protocol": {"name": "lite", "epochs": 30}}),
    ]


def fill(store: Path, records: list[Record]) -> Path:
    for record in records:
        Store(store).write(record)
    return store


def names(records: list[Record]) -> set[tuple[str, str, str]]:
    return {(record.cell.dataset, record.cell.protocol, record.cell.method) for record in records}


# ---- filters --------------------------------------------------------------------------------------------------------


def test_filters_choose_records() -> None:
    assert names(select(sample(), {"dataset": "cifar10"})) == {("cifar10", "crd240", "kd")}
    assert names(select(sample(), {"dataset": "cifar100", "protocol": "lite"})) == {("cifar100", "lite", "kd")}
    assert {record.cell.seed for record in select(sample(), {"seed": "1"})} == {1}
    assert len(select(sample(), {})) == len(sample())


@pytest.mark.parametrize(
    "filters", [{"method": "at"}, {"leaf": "intermediate/features"}, {"method": "at", "chapter": "4"}]
)
def test_the_controls_stay(filters: dict[str, str]) -> None:
    chosen = select(sample(), {"dataset": "cifar100", "protocol": "crd240", **filters})
    assert {record.cell.method for record in chosen} == {"scratch", "kd", "at"}


def test_a_pair_keeps_its_student_from_scratch() -> None:
    other = make_record("kd", 0, cell={"pair": "resnet110-resnet20", "teacher": "resnet110"}, config={"pair": {"t": 1}})
    chosen = select([*sample(), other], {"pair": "resnet110-resnet20"})
    assert {record.cell.method for record in chosen} == {"scratch", "kd"}
    assert sum(record.cell.method == "kd" for record in chosen) == 1


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"data": "cifar10"}, "no filter 'data': use dataset, pair, student, protocol, seed, method, leaf, chapter"),
        ({"dataset": "cifar"}, "No record has dataset 'cifar': choose from cifar10, cifar100"),
        ({"chapter": "7"}, "No record has chapter '7': choose from 4, controls"),
        ({"dataset": "cifar10", "protocol": "lite"}, "No record matches dataset=cifar10, protocol=lite together"),
        ({"dataset": "cifar10", "method": "at"}, "No record matches dataset=cifar10, method=at together"),
    ],
)
def test_filters_that_match_nothing_are_errors(filters: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(sample(), filters)


def test_formats(tmp_path: Path) -> None:
    store = fill(tmp_path, sample())
    assert {Path(name).suffix for name in generate(store)} == {".md", ".csv", ".tex", ".bib", ".html"}
    assert {Path(name).suffix for name in generate(store, formats=["csv", "tex"])} == {".csv", ".tex", ".bib"}
    for formats in (["pdf"], []):
        with pytest.raises(UserError, match="use md, csv, tex"):
            generate(store, formats=formats)


def test_links_of_the_index_lead_to_files() -> None:

    for formats in (["md"], ["md", "tex"], ["md", "csv", "tex", "html"]):
        texts = render(sample(), formats, load_claims())
        links = re.findall(r"\]\(([^)]+)\)", texts["tables/README.md"])
        assert {os.path.normpath(f"tables/{link}") for link in links} == texts.keys() - {"tables/README.md"}


# ---- writing and checking -------------------------------------------------------------------------------------------


def test_check_names_what_is_missing_stale_and_extra(tmp_path: Path) -> None:
    texts = render(sample())
    assert check(tmp_path, texts) == [f"missing: {path}" for path in sorted(tmp_path / name for name in texts)]
    write(tmp_path, texts)
    assert check(tmp_path, texts) == []
    tables = tmp_path / "tables"
    (group,) = [path.stem for path in tables.glob("cifar100-resnet56-resnet20-crd240-*.md")]
    (tables / f"{group}.md").write_text((tables / f"{group}.md").read_text(encoding="utf-8") + " ", encoding="utf-8")
    (tables / group / "04-one-teacher.tex").unlink()
    (tables / "old").mkdir()
    (tables / "old" / "gone.tex").write_text(next(text for name, text in texts.items() if name.endswith(".tex")))
    (tables / "old" / "notes.md").write_text("# Mine\n")
    assert check(tmp_path, texts) == [
        f"missing: {tables / group / '04-one-teacher.tex'}",
        f"stale: {tables / group}.md",
        f"extra: {tables / 'old' / 'gone.tex'}",
    ]
    write(tmp_path, texts)
    assert check(tmp_path, texts) == []
    assert sorted(path.name for path in (tables / "old").iterdir()) == ["notes.md"]


def test_other_formats_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, render(sample()))
    before = sorted(tmp_path.rglob("*.tex"))
    texts = render(sample()[:4], ["md"])
    write(tmp_path, texts)
    assert check(tmp_path, texts) == []
    assert sorted(tmp_path.rglob("*.tex")) == before
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")} == set(texts)


def test_folders_that_become_empty_go(tmp_path: Path) -> None:
    write(tmp_path, render(sample()))
    write(tmp_path, render([sample()[0]]))
    assert [path.name for path in (tmp_path / "tables").iterdir() if path.is_dir()] == []


def test_right_files_are_not_written_again(tmp_path: Path) -> None:
    texts = render(sample())
    write(tmp_path, texts)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    write(tmp_path, texts)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before


def test_tables_of_a_part_do_not_replace_those_of_the_whole(tmp_path: Path) -> None:
    store = fill(tmp_path, sample())
    with pytest.raises(UserError, match=r"name another folder \(--out\)"):
        report(store, store, {"dataset": "cifar10"})
    written = report(store, tmp_path / "part", {"dataset": "cifar10"}, ["csv"])
    assert {path.suffix for path in written} == {".csv"}


def test_names_stay_inside_the_folder() -> None:
    records = [make_record("kd", 0, cell={"dataset": "../../etc/x", "pair": "p" * 300})]
    for name in render(records):
        assert ".." not in Path(name).parts
        assert all(len(part) < 200 for part in Path(name).parts)


# ---- size -----------------------------------------------------------------------------------------------------------


def large_store(root: Path, size: int) -> Path:
    """100 methods, 3 seeds each, on as many pairs as it takes; networks disagree on a fifth of the examples."""
    shipped = [
        ("scratch", "controls", "scratch", "methods.controls.scratch.Scratch"),
        ("kd", "logits/softened-labels", "kd", "methods.logits.kd.KD"),
        ("at", "intermediate/features", None, "methods.intermediate.at.AT"),
        ("dml", "online/individual-students", None, "methods.online.dml.DML"),
    ]
    methods = shipped + [(f"m{i}", "logits/strictness", None, f"lab.m{i}.M") for i in range(100 - len(shipped))]
    rng = np.random.default_rng(0)
    base = rng.random(N_TEST) < 0.7
    folder = root / "records"
    folder.mkdir(parents=True)
    for index in range(size):
        method, leaf, control, cls = methods[index // 3 % 100]
        student = f"s{index // 300}"
        correct = base ^ (rng.random(N_TEST) < 0.11)
        top1 = float(100 * correct.mean())
        record = make_record(
            method,
            index % 3,
            info={"leaf": leaf, "control": control, "cls": cls},
            cell={"student": student, "pair": f"t-{student}"},
            config={"pair": {"student": student}},
            metrics={"last": top1, "oracle": top1},
            correct=pack_correct(correct).model_dump(),
        )
        (folder / file_name(record)).write_text(dump(record), encoding="utf-8")
    return root


def test_a_store_of_several_pairs_is_reported_whole(tmp_path: Path) -> None:
    texts = generate(large_store(tmp_path, 330))
    assert sum(name.endswith("04-one-teacher.md") for name in texts) == 2
    assert sum(name.startswith("tables/across-pairs/cifar100-crd240-") for name in texts) == 3


@pytest.mark.slow
def test_ten_thousand_records_report_in_time(tmp_path: Path) -> None:
    store = large_store(tmp_path, 10_000)
    start = time.process_time()  # of one thread, so wall time on a machine that does nothing else
    written = report(store, tmp_path / "out")
    assert time.process_time() - start < 20
    assert len(written) > 300
    assert check(tmp_path / "out", generate(store)) == []
