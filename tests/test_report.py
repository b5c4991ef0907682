"""Tables: pure functions of the records, and honest about what they stand on."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from factories import HEADS, make_record, rendered
from markdown_it import MarkdownIt
from rich.console import Console

from kdbench.errors import UserError
from kdbench.report import build_tables, render, render_terminal, report
from kdbench.report.markdown import MARKER
from kdbench.report.model import Row, Table
from kdbench.report.settings import settings_of
from kdbench.results.record import Record
from kdbench.results.store import Store

FEATURES = {"leaf": "intermediate/features", "control": None}
ALONE: dict[str, Any] = {"teacher": None, "cell": {"teacher": None, "pair": "resnet20"}, "config": {"pair": None}}
"""What makes a record one that used no teacher."""


def scratch(seed: int, top1: float, **overrides: Any) -> Record:
    return make_record("scratch", seed, top1, info={"leaf": "controls"}, **ALONE, **overrides)


def sample() -> list[Record]:
    return [
        *(scratch(seed, top1) for seed, top1 in enumerate((69.0, 69.2, 69.4))),
        *(make_record("kd", seed, top1) for seed, top1 in enumerate((70.0, 70.8, 71.0))),
        make_record("fitnet", 0, 69.5, info=FEATURES),
        make_record("fitnet", 1, 69.9, info=FEATURES),
        make_record("dkd", 0, 71.2, info={"extension": True}),
        make_record("dkd", 1, status="diverged", info={"extension": True}),
    ]


def only(records: list[Record]) -> Table:
    (table,) = build_tables(records)
    return table


def row(table: Table, label: str) -> Row:
    (found,) = [row for row in table.rows if row.label == label]
    return found


def markdown(records: list[Record]) -> str:
    """The overview of the one table that `records` make."""
    (text,) = [
        text for name, text in render(records, ["md"]).items() if len(Path(name).parts) == 2 and "README" not in name
    ]
    return text


def cells(text: str, method: str) -> dict[str, str]:
    """The cells of a method's line in a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {method} |")]
    return dict(zip(("Method", *HEADS), line[2:-2].split(" | "), strict=True))


def fill(store: Path, records: list[Record]) -> Path:
    for record in records:
        Store(store).write(record)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_numbers_of_a_row() -> None:
    """By hand: t(0.975; 2) = 4.3027, t(0.975; 1) = 12.7062; differences to scratch 1.0, 1.6, 1.6."""
    table = only(sample())
    kd = row(table, "kd")
    assert kd.reached is not None
    assert kd.reached.mean == pytest.approx(70.6)
    assert kd.reached.half == pytest.approx(4.3027 * 0.52915 / 3**0.5, abs=1e-4)
    assert kd.delta_scratch is not None
    assert kd.delta_scratch.mean == pytest.approx(1.4)
    assert kd.delta_scratch.half == pytest.approx(4.3027 * 0.34641 / 3**0.5, abs=1e-4)
    assert kd.delta_scratch.p == pytest.approx(0.0198, abs=1e-4)  # t = 7 with 2 degrees: 1 - 7 / sqrt(51)
    assert kd.delta_kd is None
    assert kd.gap == pytest.approx((70.6 - 69.2) / (72.34 - 69.2))
    fitnet = row(table, "fitnet")
    assert fitnet.delta_kd is not None
    assert fitnet.delta_kd.mean == pytest.approx(((69.5 - 70.0) + (69.9 - 70.8)) / 2)
    assert fitnet.delta_kd.half == pytest.approx(12.7062 * 0.2, abs=1e-4)


def test_shown_numbers() -> None:
    text = markdown(sample())
    assert cells(text, "kd") == {
        "Method": "kd",
        "n": "3",
        "top-1 last": "70.60 ± 1.31",
        "Δ scratch": "**+1.40 ± 0.86**",  # p = .0198, twice that with Holm: fitnet is compared too
        "Δ KD": "reference",
        "gap recovered %": "44.6",
        "student fwd/img": "1.00",
        "teacher fwd/img": "1.00",
        "extra params": "0",
        "diverged": "0",
    }
    assert cells(text, "fitnet")["Δ KD"] == "-0.70 ± 2.54"
    shown = cells(text, "scratch")
    assert (shown["top-1 last"], shown["Δ scratch"], shown["gap recovered %"]) == ("69.20 ± 0.50", "reference", "-")
    assert shown["Δ KD"] == "**-1.40 ± 0.86**"


def test_the_oracle_is_not_in_the_tables() -> None:
    records = [make_record(metrics={"oracle": 91.23}, curves={"test_top1": [91.23]})]
    texts = render(records)
    # the leaderboard shows it inside an opened row, marked as unranked
    assert "91.23" not in "".join(text for name, text in texts.items() if name != "leaderboard.html")


def test_one_seed_has_no_interval() -> None:
    text = markdown([scratch(0, 69.0), make_record("kd", 0, 70.5)])
    shown = cells(text, "kd")
    assert shown["top-1 last"] == "70.50 (one seed)"
    assert shown["Δ scratch"] == "+1.50 (one seed)"
    assert shown["gap recovered %"] == f"{100 * 1.5 / 3.34:.1f}"
    assert "±" not in "".join(shown.values())


def test_only_common_seeds_are_compared_and_counted() -> None:
    records = [
        *(scratch(seed, 69.0) for seed in (0, 1)),
        *(make_record("at", s, 70.0 + s, info=FEATURES) for s in range(4)),
    ]
    shown = cells(markdown(records), "at")
    assert shown["Δ scratch"].startswith("+1.50 ± 6.35")
    assert shown["Δ scratch"].endswith(" (n=2)")
    assert shown["Δ KD"] == "-"
    other = [scratch(9, 69.0), *(make_record("at", s, 70.0 + s, info=FEATURES) for s in range(2))]
    assert cells(markdown(other), "at")["Δ scratch"] == "-"


def test_diverged_cells_are_counted_and_enter_nothing_else() -> None:
    text = markdown([*sample(), make_record("rkd", 0, status="diverged", info=FEATURES)])
    assert (cells(text, "dkd")["n"], cells(text, "dkd")["diverged"]) == ("1", "1")
    assert cells(text, "dkd")["top-1 last"] == "71.20 (one seed)"
    lost = cells(text, "rkd")
    assert (lost.pop("Method"), lost.pop("n"), lost.pop("diverged")) == ("rkd", "0", "1")
    assert set(lost.values()) == {"-"}
    assert "- Records: 11, 2 of them diverged" in text


def test_without_scratch_there_is_no_gap() -> None:
    text = markdown([make_record("kd", 0), make_record("kd", 1)])
    assert (cells(text, "kd")["gap recovered %"], cells(text, "kd")["Δ scratch"]) == ("-", "-")
    assert "no run from scratch" in text


def test_costs_are_relative_to_the_images_seen_and_averaged_over_seeds() -> None:
    cost = {"images_seen": 1000, "student_forwards": 2000, "teacher_forwards": 500, "extra_params": 1_234_567}
    records = [make_record(seed=s, cost=cost) for s in range(2)]
    shown = cells(markdown(records), "kd")
    assert (shown["student fwd/img"], shown["teacher fwd/img"]) == ("2.00", "0.50")
    assert shown["extra params"] == "1,234,567"
    nothing = cells(markdown([make_record(cost={"images_seen": 0})]), "kd")
    assert (nothing["student fwd/img"], nothing["teacher fwd/img"]) == ("-", "-")


def test_a_rounded_zero_has_no_sign() -> None:
    records = [scratch(seed, 70.0) for seed in range(3)]
    records += [make_record("at", seed, top1, info=FEATURES) for seed, top1 in enumerate((69.99, 70.0, 70.0))]
    assert cells(markdown(records), "at")["Δ scratch"] == "+0.00 ± 0.01"


def test_controls_are_known_by_their_declaration_not_by_their_name() -> None:
    records = [
        make_record("plain", 0, 69.0, info={"control": "scratch"}, **ALONE),
        make_record("hinton", 0, 70.0, info={"control": "kd"}),
        make_record("scratch", 0, 71.0, info={"control": None}),
    ]
    table = only(records)
    assert [(r.block, r.method) for r in table.rows] == [
        ("Controls", "plain"),
        ("Controls", "hinton"),
        ("4.1.1 Softened labels and regularization", "scratch"),
    ]
    shown = cells(markdown(records), "scratch")
    assert (shown["Δ scratch"], shown["Δ KD"]) == ("+2.00 (one seed)", "+1.00 (one seed)")


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_follow_the_survey_between_controls_and_extensions() -> None:
    records = [
        make_record("reviewkd", info={"leaf": "intermediate/features", "extension": True}),
        make_record("dkd", info={"extension": True}),
        make_record("mine", info={"leaf": "lab/mine"}),
        make_record("lucir", info={"leaf": "learning/incremental"}),
        make_record("sp", info=FEATURES),
        make_record("at", info=FEATURES),
        make_record("rkd", info={"leaf": "logits/strictness"}),
        make_record("kd"),
        make_record("smoothing"),
        scratch(0, 69.0),
    ]
    assert [(row.block, row.method) for row in only(records).rows] == [
        ("Controls", "scratch"),
        ("Controls", "smoothing"),
        ("Controls", "kd"),
        ("4.1.3 Imposing strictness in distillation", "rkd"),
        ("4.2 Knowledge from the intermediate layers", "at"),
        ("4.2 Knowledge from the intermediate layers", "sp"),
        ("9.5 Incremental learning", "lucir"),
        ("Extensions", "dkd"),
        ("Extensions", "reviewkd"),
        ("Third-party: lab/mine", "mine"),
    ]
    blocks = re.findall(r"^\| \*\*(.+?)\*\* \|", markdown(records), re.MULTILINE)
    assert blocks == list(dict.fromkeys(row.block for row in only(records).rows))


def test_a_setting_that_a_record_is_too_old_for_has_the_value_that_meant_the_same() -> None:
    target = {"_target_": "methods.learning.lucir.LUCIR"}
    configs = [{"method": target}, {"method": {**target, "hold": True}}]
    old, new = settings_of([make_record("lucir", config=config) for config in configs])
    assert (old.label, new.label) == ("lucir (hold=false)", "lucir (hold=true)")
    assert old.has({"hold": "false"})
    ramps = [{"weights": {"kd": {"start": 0.0, "end": 1.0, **curve}}} for curve in ({}, {"curve": "gaussian"})]
    assert {s.label for s in settings_of([make_record(config={"method": ramp}) for ramp in ramps])} == {
        "kd (weights.kd.curve=linear)",
        "kd (weights.kd.curve=gaussian)",
    }
    own = [{"method": {**config["method"], "_target_": "mine.LUCIR"}} for config in configs]
    assert [s.label for s in settings_of([make_record("lucir", config=config) for config in own])] == [
        "lucir (hold=true)",
        "lucir (hold=unset)",
    ]


def test_settings_of_one_method_are_rows_named_by_what_differs() -> None:
    def at(temperature: float, **config: Any) -> dict[str, Any]:
        return {"config": {"method": {"temperature": temperature, **config}}}

    records = [make_record("kd", s, 70.0, **at(4.0, alpha=0.9)) for s in range(2)]
    records += [make_record("kd", s, 71.0, **at(8.0, alpha=0.9)) for s in range(3)]
    records += [make_record("kd", 0, 72.0, **at(4)), make_record("at", 0, 70.0, info=FEATURES)]
    table = only(records)
    assert [(r.label, len(r.seeds)) for r in table.rows] == [
        ("kd (alpha=0.9, temperature=4)", 2),
        ("kd (alpha=0.9, temperature=8)", 3),
        ("kd (alpha=unset, temperature=4)", 1),
        ("at", 1),
    ]


def test_the_control_of_most_seeds_is_the_reference_even_where_another_is_better() -> None:
    records = [make_record("kd", s, 70.0) for s in range(2)]
    records += [make_record("kd", 0, 75.0, config={"method": {"temperature": 8.0}})]
    records += [make_record("at", 0, 71.0, info=FEATURES)]
    text = markdown(records)
    assert cells(text, "at")["Δ KD"] == "+1.00 (one seed)"
    assert cells(text, "kd (temperature=8)")["Δ KD"] == "+5.00 (one seed)"
    assert (
        "Δ KD is against kd (temperature=4), of 2 settings the one of most seeds, as none is the shipped default."
        in text
    )
    assert cells(text, "kd (temperature=4)")["Δ KD"] == "reference"


# ---- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"teacher": {"sha256": "b" * 64}},
        {"config": {"protocol": {"batch_size": 128}}},
        {"dataset": {"sha256": "e" * 64}},
        {"dataset": {"n_train": 45_000, "n_val": 5_000}},
        {"cell": {"protocol": "crd60"}},
        {"cell": {"dataset": "cifar10"}},
        {"cell": {"student": "resnet8", "pair": "resnet56-resnet8"}},
    ],
)
def test_what_is_not_comparable_never_shares_a_table(overrides: dict[str, Any]) -> None:
    records = [make_record("at", 0, info=FEATURES), make_record("sp", 0, info=FEATURES, **overrides)]
    tables = build_tables(records)
    assert sorted([row.method for row in table.rows] for table in tables) == [["at"], ["sp"]]
    assert len({table.name for table in tables}) == 2
    assert sum(len(Path(name).parts) == 2 for name in render(records)) == 8  # two in three formats, works, index


def test_records_that_do_not_say_how_classes_are_called_stand_with_those_that_do() -> None:
    """Under the name that their table had before; where classes are called in two ways nobody knows with which."""
    old = make_record("kd", 0)
    one, two = (make_record("at", 0, dataset={"classes": word * 64}) for word in "ab")
    (before,), (after,) = build_tables([old]), build_tables([old, one])
    assert before.name == after.name
    assert after.cells == {old.cell.id, one.cell.id}
    assert build_tables([one])[0].name != after.name
    assert len(build_tables([old, one, make_record("sp", 0, dataset={"classes": "b" * 64})])) == 3
    assert build_tables([two])[0].name != build_tables([one])[0].name


def test_runs_with_teachers_of_their_own_share_a_table() -> None:
    own = {"config": {"teacher": {"name": "resnet56", "seed": "run"}}}
    runs = [make_record("kd", seed, **own, teacher={"sha256": str(seed) * 64}) for seed in (0, 1)]
    (table,) = build_tables(runs)
    assert len(table.rows) == 1
    assert "the mean, as each run has one of its own" in table.trust
    shared = [make_record("kd", seed, teacher={"sha256": str(seed) * 64}) for seed in (0, 1)]
    assert len(build_tables(shared)) == 2


def test_one_run_from_scratch_stands_in_the_table_of_every_teacher() -> None:
    sha = "b" * 64
    records = [scratch(0, 69.0), make_record("kd", 0, 70.0), make_record("at", 0, 71.0, info=FEATURES)]
    records += [
        make_record("kd", 1, 70.0, teacher={"sha256": sha, "accuracy": 75.0}, config={"pair": {"teacher": "other"}})
    ]
    tables = build_tables(records)
    assert [sorted(row.method for row in table.rows) for table in tables if "sha256 bbbb" in table.header[0]] == [
        ["kd", "scratch"]
    ]
    assert [sorted(row.method for row in table.rows) for table in tables if "sha256 aaaa" in table.header[0]] == [
        ["at", "kd", "scratch"]
    ]


def test_a_table_without_any_teacher() -> None:
    text = markdown([scratch(0, 69.0), make_record("smoothing", 0, 70.0, **ALONE)])
    assert "- Teacher: none." in text
    assert cells(text, "smoothing")["gap recovered %"] == "-"
    assert cells(text, "smoothing")["Δ scratch"] == "+1.00 (one seed)"


def test_the_header_says_what_the_numbers_stand_on() -> None:
    records = [*sample(), make_record("kd", 3, 70.0, environment={"device": "NVIDIA H100", "torch": "2.7.0"})]
    head = markdown(records).split("| Method")[0]
    for fact in (
        "resnet56, 72.34 % (sha256 aaaaaaaaaaaa)",
        "resnet20, from scratch 69.20 ± 0.50 %",
        "cifar100 (sha256 dddddddddddd), 50000 training, 0 validation and 10000 test images, 100 classes",
        "crd240 (batch_size=64, epochs=240, name=crd240)",
        "the last epoch",
        "Seeds: 0, 1, 2, 3.",
        "95 % t-interval",
        "Records: 11, 1 of them diverged",
        "NVIDIA H100 / cpu",
        "torch 2.6.0 / 2.7.0",
        "kdbench 0.1.0",
        "engine path plain",
    ):
        assert fact in head


@pytest.mark.parametrize("name", ["a|b", "*a*", "<b>a</b>", "[a](b)", "`a`", "_a_", "a\\", "&lt;", "[red]a", "~~a~~"])
def test_names_are_shown_literally(name: str) -> None:
    record = make_record(name, cell={"pair": f"{name}-pair"}, info=FEATURES)
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown([record]))
    inline = [token.children for token in tokens if token.type == "inline" and token.children is not None]
    plain = [[child.content for child in children] for children in inline if {c.type for c in children} <= {"text"}]
    assert [name] in [["".join(parts)] for parts in plain]
    console = Console(file=io.StringIO(), width=200)
    console.print(render_terminal(build_tables([record])))
    assert name in console.file.getvalue()  # type: ignore[attr-defined]


def test_underscores_inside_names_stay_readable() -> None:
    assert "| tfkd_reg |" in markdown([make_record("tfkd_reg", info=FEATURES)])


def test_the_csv_has_ten_digits() -> None:
    text = rendered(sample(), ["csv"])["tables/cifar100-resnet56-resnet20-crd240.csv"]
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(text))}
    kd = row(only(sample()), "kd")
    assert kd.reached is not None
    assert kd.delta_scratch is not None
    assert float(rows["kd"]["top1"]) == pytest.approx(kd.reached.mean, rel=1e-9)
    assert float(rows["kd"]["top1_low"]) == pytest.approx(kd.reached.low, rel=1e-9)
    assert float(rows["kd"]["delta_scratch_p"]) == pytest.approx(kd.delta_scratch.p, rel=1e-9)
    assert rows["kd"]["delta_scratch_p"] == f"{kd.delta_scratch.p:.10g}"
    assert rows["kd"]["seeds"] == "0 1 2"
    assert rows["kd"]["delta_kd"] == ""
    assert rows["dkd"]["top1_low"] == ""
    assert (rows["dkd"]["block"], rows["dkd"]["n"], rows["dkd"]["diverged"]) == ("Extensions", "1", "1")


def test_the_terminal_shows_the_same_rows_in_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(render_terminal(build_tables(sample())))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("cifar100, resnet56-resnet20, crd240", "Controls", "Extensions"):
        assert text in shown
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert lines["kd"] == ["3", "70.60", "±", "1.31", "+1.40", "±", "0.86", "reference", "44.6", "0"]
    assert lines["fitnet"] == ["2", "69.70", "±", "2.54", "+0.60", "±", "1.27", "-0.70", "±", "2.54", "15.9", "0"]
    assert lines["dkd"] == ["1", "71.20", "+2.20", "+1.20", "63.7", "1"]


# ---- files ----------------------------------------------------------------------------------------------------------


def test_report_writes_tables_and_an_index(tmp_path: Path) -> None:
    written = report(fill(tmp_path / "store", sample()), tmp_path / "out")
    (table,) = build_tables(sample())
    name = table.name
    files = [f"{name}{part}.{suffix}" for part in ("", "/04-one-teacher") for suffix in ("csv", "md", "tex")]
    tables = tmp_path / "out" / "tables"
    others = [tables.parent / "leaderboard.html", tables / "claims.md", tables / "claims.csv", tables / "README.md"]
    others.append(tables / "kdbench.bib")
    assert written == sorted([*others, *(tables / file for file in files)])
    index = (tables / "README.md").read_text(encoding="utf-8")
    assert f"[cifar100, resnet56-resnet20, crd240]({name}.md) ([CSV]({name}.csv))" in index
    assert f"[04-one-teacher]({name}/04-one-teacher.md)" in index
    assert all(path.read_text(encoding="utf-8").startswith(MARKER) for path in written if path.suffix == ".md")
    assert sorted(path for path in tables.parent.rglob("*") if path.is_file()) == written


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    records = [*sample(), make_record("kd", 5, 70.1, teacher={"sha256": "b" * 64})]
    first = fill(tmp_path / "first", records)
    second = fill(tmp_path / "second", records[::-1])
    report(first, tmp_path / "a")
    report(second, tmp_path / "b")
    before = contents(tmp_path / "a" / "tables")
    assert contents(tmp_path / "b" / "tables") == before
    report(first, tmp_path / "a")
    assert contents(tmp_path / "a" / "tables") == before
    assert render(records) == render(records[::-1])


def test_stale_tables_go_and_other_files_stay(tmp_path: Path) -> None:
    tables = tmp_path / "out" / "tables"
    report(fill(tmp_path / "old", [make_record(cell={"protocol": "crd60"})]), tmp_path / "out")
    (tables / "mine.md").write_text("# My notes\n")
    (tables / "mine.csv").write_text("method,top1\n")
    (tables / "figure.png").write_bytes(b"\x89PNG")
    assert list(tables.glob("cifar100-resnet56-resnet20-crd60-*.csv"))
    written = report(fill(tmp_path / "new", sample()), tmp_path / "out")
    mine = {"tables/mine.md", "tables/mine.csv", "tables/figure.png"}
    out = tables.parent
    assert set(contents(out)) == {path.relative_to(out).as_posix() for path in written} | mine
    assert not any("crd60" in path.name for path in tables.iterdir())


def test_a_file_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "README.md").write_text("# Mine\n")
    with pytest.raises(UserError, match=r"README\.md was not written by kdbench: move it away"):
        report(fill(tmp_path, sample()), tmp_path)
    assert contents(tables) == {"README.md": b"# Mine\n"}


def test_an_empty_store_is_an_error_with_a_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no records: train some cells first"):
        report(tmp_path / "store", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_an_error_with_a_mend(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"Cannot write to .*a part of that path is a file"):
        report(fill(tmp_path / "store", sample()), tmp_path / "out")


def test_a_bad_record_stops_the_report(tmp_path: Path) -> None:
    store = fill(tmp_path, sample())
    path = next(store.glob("records/fitnet*"))
    path.write_text(path.read_text().replace('"train_seconds": 120.0', '"train_seconds": 1.0'))
    with pytest.raises(UserError, match="was edited"):
        report(store, tmp_path)
    assert not (tmp_path / "tables").exists()
