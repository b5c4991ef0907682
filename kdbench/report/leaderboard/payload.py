"""What the page is given: every row of every table with its texts, its runs and its place in the survey."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from kdbench.docs import Docs, spans
from kdbench.report.across import across_pairs, standing
from kdbench.report.bibliography import work
from kdbench.report.claims import HEADER, TRUST, answered, claims_tables, coverage_table
from kdbench.report.latex import escape
from kdbench.report.leaderboard.columns import columns, further_heads
from kdbench.report.measured import measured_cells
from kdbench.report.model import Row, Table
from kdbench.report.settings import Comparison, Known, Setting, settings_of
from kdbench.report.sheet import number, p_value
from kdbench.results import claims as published
from kdbench.results.record import Cost, Record, canonical_json, digest
from kdbench.results.stats import ALPHA
from kdbench.shipped import is_third_party
from kdbench.taxonomy import load_taxonomy, tree
from kdbench.text import fixed, full, some

HASH_DIGITS = 16
"""Digits shown of a record's sha256."""


class Described(Known, Protocol):
    """A method as the registry knows it, with what its file says of it."""

    @property
    def docs(self) -> Docs: ...


@dataclass(frozen=True)
class _Unknown:
    """A method that has records, but no config here."""

    name: str
    leaf: str
    title: str
    paper: str | None
    extension: bool
    path: str


class _Pool:
    """Each value once; the page refers to them by number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.values: list[Any] = []

    def add(self, value: Any) -> int:
        key = canonical_json(value)
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


def unique_records(tables: Sequence[Table]) -> list[Record]:
    """Every record once: those without a teacher stand in several tables."""
    found = {record.cell.id: record for table in tables for record in table.records}
    return [found[cell] for cell in sorted(found)]


def payload(
    tables: Sequence[Table],
    records: Sequence[Record],
    entries: Sequence[Described],
    claims: Sequence[published.Comparison],
) -> dict[str, Any]:
    """`records` are the `unique_records` of `tables`; see `kdbench.report.leaderboard.render`."""
    numbers = {record.cell.id: index for index, record in enumerate(records)}
    digits = {cell: table.digits for table in tables for cell in table.cells}
    groups = [(table, settings_of(table.records)) for table in tables]
    answers = answered(claims)
    configs, environments, surveys = _Pool(), _Pool(), _Pool()
    rows, shown = [], []
    for index, (table, group) in enumerate(groups):
        ranks, mains = _ranks(table), {id(row) for row in standing(table).values()}
        for row, setting in zip(table.rows, group, strict=True):
            cells = {record.cell.id for record in setting.records}
            rows.append(
                _row(index, row, setting, table, numbers, configs)
                | {
                    "rank": ranks.get(id(row)),
                    "main": id(row) in mains,
                    "survey": surveys.add(dict(row.survey or {})),
                    "claims": [at for at, claim in enumerate(answers) if not cells.isdisjoint(claim.cells)],
                }
            )
            shown.append(_shown(row, setting, table))
    heads = columns(tables, paper=bool(answers))
    told = [table.title for table in tables], [row.label for table in tables for row in table.rows], heads, shown
    return {
        "tables": [_table(table) for table in tables],
        "columns": heads,
        "tex": _escapes(canonical_json([*told, surveys.values])),
        "chapters": _chapters([*entries, *_unknown(groups, entries)], {row["leaf"] for row in rows}),
        "docs": {entry.path: _docs(entry.docs) for entry in entries},
        "works": _works(row["paper"] for row in rows),
        "rows": _columns(rows),
        "shown": _columns(shown),
        "surveys": surveys.values,
        "records": _columns([_record(record, digits[record.cell.id], environments) for record in records]),
        "configs": configs.values,
        "environments": environments.values,
        "across": _across(tables),
        "claims": _claims(claims),
    }


def _unknown(groups: Iterable[tuple[Table, Sequence[Setting]]], entries: Sequence[Known]) -> list[_Unknown]:
    known = {entry.name for entry in entries}
    found = {}
    for _, group in groups:
        for setting in group:
            name, info = setting.method, setting.info
            if name not in known:
                found[name] = _Unknown(name, info.leaf, name, info.paper, info.extension, info.cls)
    return list(found.values())


def _ranks(table: Table) -> dict[int, int]:
    """Of each row with a finished run, by its identity: one more than how many are better."""
    values = {id(row): table.measure.merit(float(full(row.reached.mean))) for row in table.rows if row.reached}
    better = sorted(values.values(), reverse=True)
    return {row: 1 + better.index(value) for row, value in values.items()}


def _works(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of the bibliography, for methods whose file is not known here."""
    found = {key: work(key) for key in sorted(set(keys))}
    return {key: asdict(each) for key, each in found.items() if each}


def _escapes(text: str) -> dict[str, str]:
    """The characters of `text` that LaTeX takes for something else."""
    return {each: escape(each) for each in sorted(set(text)) if not each.isspace() and escape(each) != each}


def _docs(docs: Docs) -> dict[str, Any]:
    return {
        "work": docs.work and asdict(docs.work),
        "idea": spans(docs.idea),
        "equations": [spans(line) for line in docs.equations],
    }


def _across(tables: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """By cohort, what its methods reach over all pairs."""
    cohorts: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        cohorts[table.cohort[:8]].append(table)
    return {
        cohort: {
            "title": sheet.title,
            "columns": [column.head for column in grid.columns],
            "rows": [[cell.text for cell in row] for block in grid.blocks for row in block.rows],
            "notes": [*grid.remarks, sheet.trust],
        }
        for cohort, group in cohorts.items()
        for sheet in across_pairs(group)
        for grid in sheet.grids
        if grid.key == "summary"
    }


def _claims(comparisons: Sequence[published.Comparison]) -> dict[str, Any]:
    """Claims that records answer, in the order of the rows' ``claims``, and how many others there are."""
    coverage = coverage_table(comparisons)
    return {
        "header": list(HEADER),
        "rows": [[table.title, *row] for table in claims_tables(comparisons) for row in table.rows],
        "number": HEADER.index("Claim") + 1,
        "status": HEADER.index("Status") + 1,
        "coverage": {"header": list(coverage.header), "rows": [list(row) for row in coverage.rows]},
        "trust": TRUST,
    }


def _table(table: Table) -> dict[str, Any]:
    taught = next((record for record in table.records if record.teacher), None)
    measure = table.measure
    return {
        "title": table.title,
        "dataset": table.dataset,
        "measure": measure.label,
        "unit": measure.unit,
        "higher": measure.higher,
        "examples": measure.examples,
        "others": further_heads(table),
        "versus": [table.versus["scratch"], table.versus["kd"]],
        "pair": table.pair,
        "student": table.records[0].cell.student,
        "protocol": table.protocol,
        "cohort": table.cohort[:8],
        "teacher": taught and taught.teacher and [taught.teacher.name, str(taught.taught_by)[:12], table.teacher],
        "accuracy": number(table.teacher, table.digits),
        "facts": table.header,
        "trust": table.trust,
    }


def _row(
    index: int, row: Row, setting: Setting, table: Table, numbers: Mapping[str, int], configs: _Pool
) -> dict[str, Any]:
    cells, info = [record.cell.id for record in setting.records], setting.info
    costs = _costs(setting)
    same = {key: value for key, value in setting.records[0].config.items() if key != "seed"}
    gap_low, gap_high = _gap_interval(row, table)
    values: dict[str, Any] = {
        # a fragment of an address: the same as long as the setting and the table are
        "id": digest([same, table.name])[:12],
        "table": index,
        "leaf": row.leaf,
        "method": row.method,
        "setting": row.setting,
        "role": row.role,
        # the control that others are compared with in this row
        "against": row.control if row.reference else None,
        "paper": info.paper or "",
        "cls": row.cls,
        "needs": " ".join(info.needs),
        "n": len(row.scores),
        "diverged": row.diverged,
        "reached": row.reached.mean if row.reached else None,
        "half": row.reached.half if row.reached else None,
        "others": [float(full(row.others[name].mean)) if name in row.others else None for name in table.others],
        "bal": row.recall.mean.mean if row.recall and table.unequal else None,
        "balHalf": row.recall.mean.half if row.recall and table.unequal else None,
        "gap": row.gap,
        "gapLow": gap_low,
        "gapHigh": gap_high,
        "macs": max(cost.student_macs for cost in costs),
        "params": max(cost.student_params for cost in costs),
        "extra": row.extra_params,
        "minutes": row.train_minutes,
        "images": _images(setting),
        "sf": row.student_forwards,
        "tf": row.teacher_forwards,
        "fwd": _sum(row.student_forwards, row.teacher_forwards),
        "config": [configs.add([key, same[key]]) for key in sorted(same)],
        "records": [numbers[cell] for cell in cells],
    }
    for key, delta in (("ds", row.delta_scratch), ("dk", row.delta_kd)):
        values[key] = delta.mean if delta else None
        values[f"{key}Half"] = delta.half if delta else None
        values[f"{key}N"] = delta.n if delta else 0
        values[f"{key}P"] = delta.holm if delta else None
    return {key: float(full(value)) if isinstance(value, float) else value for key, value in values.items()}


_KEYS = {
    "score": "reached",
    "balanced": "bal",
    "delta_scratch": "ds",
    "delta_kd": "dk",
    "gap": "gap",
    "minutes": "minutes",
    "student_forwards": "sf",
    "teacher_forwards": "tf",
    "extra_params": "extra",
}
"""Columns of every format -> the page's names of them."""


def _shown(row: Row, setting: Setting, table: Table) -> dict[str, Any]:
    """The row's numbers as texts: those of the other formats, and some that the page alone has."""
    cells = measured_cells(table, row)
    costs = _costs(setting)
    low, high = _gap_interval(row, table)
    return {key: cells[name].text if name in cells else "-" for name, key in _KEYS.items()} | {
        "others": [cells[f"other {name}"].text for name in table.others],
        "sure": "".join(key for name, key in _KEYS.items() if key in ("ds", "dk") and cells[name].bold),
        "dsWhy": _why(row.delta_scratch),
        "dkWhy": _why(row.delta_kd),
        "gapLow": number(low, 1, scale=100),
        "gapHigh": number(high, 1, scale=100),
        "fwd": number(_sum(row.student_forwards, row.teacher_forwards)),
        "macs": big(max(cost.student_macs for cost in costs)),
        "params": big(max(cost.student_params for cost in costs)),
        "images": big(_images(setting)),
    }


def _why(delta: Comparison | None) -> str:
    """What may be said of a difference."""
    if delta is None:
        return ""
    if delta.half is None:
        return "one seed: no interval and no test"
    if delta.holm is None:
        return p_value(None)
    word = "not distinguishable" if not delta.significant else "better" if delta.better else "worse"
    return f"{word}, {p_value(delta.holm)} after Holm"


def big(value: int) -> str:
    """A count with three significant digits."""
    for size, unit in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10**size:
            digits = max(0, 3 - (len(str(value)) - size))
            return f"{fixed(value / 10**size, digits)} {unit}"
    return str(value)


def _costs(setting: Setting) -> list[Cost]:
    return [record.cost for record in setting.finished] or [record.cost for record in setting.records]


def _images(setting: Setting) -> int:
    costs = _costs(setting)
    return round(math.fsum(cost.images_seen for cost in costs) / len(costs))


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _gap_interval(row: Row, table: Table) -> tuple[float | None, float | None]:
    """The interval of the paired difference to scratch, as a share of the gap that this table's means leave.

    None where not all seeds of the row could be paired, or where one seed tells no spread.
    """
    delta, scratch = row.delta_scratch, table.control("scratch")
    if row.gap is None or delta is None or delta.half is None or delta.n < len(row.scores):
        return None, None
    if scratch is None or scratch.reached is None or table.goal is None:
        return None, None
    half = delta.half / abs(table.goal - scratch.reached.mean)
    return row.gap - half, row.gap + half


def _record(record: Record, digits: int, environments: _Pool) -> dict[str, Any]:
    metrics, cost = record.metrics, record.cost
    return {
        "seed": record.cell.seed,
        "last": number(metrics.last if metrics else None, digits),
        "val": number(metrics.val_selected if metrics else None, digits),
        "oracle": number(metrics.oracle if metrics else None, digits),
        "reason": record.reason,
        "minutes": number(cost.train_seconds / 60),
        "ips": number(cost.images_per_second, 0),
        "memory": number(cost.peak_memory_mb, 0),
        "cell": record.cell.id,
        "sha": digest(record.model_dump(mode="json"))[:HASH_DIGITS],
        "created": record.created.strftime("%Y-%m-%d %H:%M"),
        "environment": environments.add(record.environment.model_dump(mode="json")),
    }


def _chapters(methods: Sequence[Known | _Unknown], recorded: set[str]) -> list[dict[str, Any]]:
    places = {method.name: (_role(method), method.path) for method in methods}
    chapters: list[dict[str, Any]] = [
        {
            "title": f"{chapter.number or ''} {chapter.title}".strip(),
            "leaves": [
                {
                    "id": leaf.id,
                    "title": f"{leaf.section or ''} {leaf.title}".strip(),
                    "question": leaf.question,
                    "open": leaf.open,
                    "cited": len(leaf.cited),
                    "methods": [[method.name, method.title, *places[method.name]] for method in leaf.methods],
                }
                for leaf in chapter.leaves
            ],
        }
        for chapter in tree(methods)
    ]
    # records of a known method that has moved from a leaf that is in no tree
    listed = {leaf["id"] for chapter in chapters for leaf in chapter["leaves"]}
    lost: list[dict[str, Any]] = [
        {"id": leaf, "title": leaf, "question": "", "open": None, "cited": 0, "methods": []}
        for leaf in sorted(recorded - listed)
    ]
    return [*chapters, {"title": "No longer in the tree", "leaves": lost}] if lost else chapters


def _role(method: Known | _Unknown) -> str:
    """As `kdbench.report.settings.role_of` says it of records."""
    if is_third_party(method.path) or load_taxonomy().find(method.leaf) is None:
        return "third-party"
    uncited = method.paper and method.paper not in load_taxonomy().cited
    return "extension" if method.extension or uncited else "survey"


def trust(tables: Sequence[Table], records: Sequence[Record]) -> str:
    """What holds for the whole page; with one table, what holds for it."""
    if not records:
        return "No records."
    if len(tables) == 1:
        return tables[0].trust
    environments = [record.environment for record in records]
    diverged = sum(record.status == "diverged" for record in records)
    versions = ", ".join(
        f"{name} {_listed(getattr(environment, name) for environment in environments)}"
        for name in ("kdbench", "torch", "lightning")
    )
    return "; ".join(
        [
            f"{len(tables)} tables, each ends with its own line; numbers of different tables are not comparable",
            f"protocols {_listed(table.protocol for table in tables)}",
            "selection: last epoch, the best test epoch (oracle) is never ranked",
            "± 95 % t-interval over seeds",
            f"bold: paired t-test p < {ALPHA} after Holm inside its table",
            f"{len({r.teacher.sha256 for r in records if r.teacher})} teachers by sha256",
            _listed(environment.device for environment in environments),
            versions,
            f"{len(records)} records, {diverged} diverged",
        ]
    )


def _listed(values: Iterable[str], most: int = 4) -> str:
    return some(sorted(set(values)), most, " / ")


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns: the names are said once."""
    return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}
