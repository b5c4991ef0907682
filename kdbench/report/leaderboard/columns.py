"""The columns of the page: their heads, and what the reader is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kdbench.report.measured import measured
from kdbench.report.model import Table
from kdbench.report.sheet import OTHER
from kdbench.results.stats import ALPHA
from kdbench.taxonomy import load_taxonomy


def columns(tables: Sequence[Table], *, paper: bool) -> list[dict[str, Any]]:
    """Columns in order, as ``key``, ``label``, ``help`` and ``kind``: words (``text``) or a number, and when shown.

    ``in`` holds the sets of columns that it stands in; ``mixed`` those shown where rows of several tables are mixed.
    `paper`: whether any row answers a claim.
    """
    each = "image" if all(table.measure.examples == "images" for table in tables) else "sample"
    head = _common((_head(table) for table in tables), "Measured")
    scratch, kd = (_common((table.versus[name] for table in tables), word) for name, word in (
        ("scratch", "Δ scratch"), ("kd", "Δ KD"),
    ))  # fmt: skip
    others = sorted({head for table in tables for head in further_heads(table)})
    surveys = {
        key: heading
        for chapter in load_taxonomy().chapters
        for part in chapter.tables
        for key, heading in part.columns.items()
    }
    both, costs, mixed = "results survey", "results", "mixed"
    told: list[tuple[str, str, str, str]] = [
        ("rank", "#", f"{both} text", "Place in its table by what is measured; equal means share one. Near means are "
            "often not distinguishable: see Δ KD."),
        ("method", "Method", f"{both} text", "Method, and the settings that tell it from others of its name in the "
            "table. ■ control, ● cited by the survey, ▲ extension, ◆ third-party: of a package that does not ship with "
            "kdbench, or a leaf that is not in the survey's tree; ★ the teacher, which has no rank. Controls stay "
            "under every filter, dimmed where it does not name them."),
        ("dataset", "Data set", f"{mixed} text", "Data set by name; tables also tell its content and settings apart."),
        ("pair", "Pair", f"{mixed} text", "Teacher and student of the table. Runs without a teacher stand in the table "
            "of every teacher of their student."),
        ("protocol", "Protocol", f"{mixed} text", "Epochs, optimiser, schedule, precision: whatever makes numbers "
            "comparable."),
        ("teacher", "Teacher", f"{mixed} text", "Its name and the first digits of the sha256 of its weights."),
        *([("measure", "Measure", f"{mixed} text", "What is measured, its unit, and where lower is better.")]
            if head == "Measured" else []),
        ("reached", head, both, "Mean over seeds of what is measured on the test set after the last epoch, ± its 95 % "
            "t-interval. The strip draws both on the scale of the table; its tick is the teacher."),
        *([("bal", "Balanced %", costs, "Mean over classes of the share of their test images that is right, ± its 95 % "
            "t-interval over seeds; shown where the largest class has more than 1.5 times the images of the smallest.")]
            if any(table.unequal for table in tables) else []),
        ("n", "n", costs, "Finished seeds."),
        ("ds", scratch, costs, "Mean difference to training from scratch between runs of the same seed, ± its 95 % "
            f"interval. Bold: paired t-test, p < {ALPHA} after Holm's correction inside the table; else the two are "
            "not distinguishable. The row that is compared with says reference."),
        ("dk", kd, both, "The same, to plain distillation."),
        *((f"other {name}", name, costs, "A further measure, mean over seeds ± its 95 % t-interval.")
            for name in others),
        ("gap", "Gap %", costs, "Share of the gap between the student from scratch (0) and its teacher (100) that is "
            "recovered."),
        *([("published", "Paper's", both, "What a paper prints for this row, and whether ours agrees; see the view "
            "Published.")] if paper else []),
        ("sf", "S fwd", costs, f"Student forwards for each {each} drawn."),
        ("tf", "T fwd", costs, f"Teacher forwards for each {each} drawn."),
        ("macs", "MACs", costs, f"Multiply-accumulates of the deployed network for one {each}."),
        ("params", "Params", costs, "Parameters of the deployed network."),
        ("extra", "Extra", costs, "Parameters that only training needs: adapters, heads, generators."),
        ("images", f"{each}s".capitalize(), costs, f"Training {each}s drawn, over all epochs and stages."),
        ("minutes", "Train min", costs, "Minutes of training, median over seeds; comparable on one device that does "
            "nothing else. None where seeds differ by more than 2x, as pauses do."),
        ("diverged", "Div.", costs, "Seeds that diverged; they count here alone."),
        ("work", "Paper", "survey text", "The work, by its authors and year."),
        *((f"survey {key}", heading, "survey text", "A column of the survey's table, as the method fills it in.")
            for key, heading in surveys.items()),
    ]  # fmt: skip
    return [{"key": key, "label": label, "in": kind.split(), "help": text} for key, label, kind, text in told]


def further_heads(table: Table) -> list[str]:
    """Of its further measures, in their order."""
    heads = measured(table)
    return [heads[f"{OTHER}{name}"] for name in table.others]


def _head(table: Table) -> str:
    measure = table.measure
    name = "Top-1" if measure.label == "top-1" else measure.label
    return " ".join(filter(None, [name, measure.unit, "" if measure.higher else "(lower is better)"]))


def _common(values: Iterable[str], word: str) -> str:
    """What all say, or a word that does for any."""
    found = set(values)
    return found.pop() if len(found) == 1 else word
