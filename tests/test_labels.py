"""The labels of test sets: the recall of each class from the bits of the records."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Kdbench
from factories import make_record, rendered
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score

from kdbench.data.datasets import DatasetConfig
from kdbench.errors import UserError
from kdbench.report import build_tables, render_terminal
from kdbench.results.labels import FOLDER, class_sizes, keep_labels, load_labels
from kdbench.results.record import Record, pack_correct, unpack_correct
from kdbench.results.store import Store
from kdbench.settings import of_run

RESULTS = Path(__file__).parents[1] / "results"
CONTENT = "d" * 64


def record(correct: np.ndarray[Any, Any], classes: int, seed: int = 0, **overrides: Any) -> Record:
    top1 = 100 * float(correct.mean())
    return make_record(
        "kd",
        seed,
        dataset={"n_test": len(correct), "num_classes": classes},
        metrics={"last": top1, "oracle": top1},
        correct=pack_correct(correct).model_dump(),
        **overrides,
    )


def keep(root: Path, labels: np.ndarray[Any, Any], n: int, **config: Any) -> Path:
    return keep_labels(root, "cifar100", CONTENT, {"name": "cifar100", **config}, labels, list(map(str, range(n))))


def shown(root: Path, records: list[Record]) -> tuple[str, dict[str, str], str]:
    """Markdown, the only row of the CSV, and the terminal."""
    labels = load_labels(root)
    texts = rendered(records, ["md", "csv"], labels=labels)
    name = "tables/cifar100-resnet56-resnet20-crd240"
    (row,) = csv.DictReader(io.StringIO(texts[f"{name}.csv"]))
    console = Console(file=io.StringIO(), width=120)
    console.print(render_terminal(build_tables(records, labels=labels)))
    return texts[f"{name}.md"], row, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_network_that_only_knows_the_large_class(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], [475, 25])
    keep(tmp_path, labels, 2)
    text, row, terminal = shown(tmp_path, [record(labels == 0, 2)])
    assert "| Method | n | top-1 last | balanced | Δ scratch |" in text
    assert "| kd | 1 | 95.00 (one seed) | 50.00 (one seed) |" in text
    assert "2 classes of 25 to 475 test images." in text
    assert (row["top1"], row["macro_recall"]) == ("95", "50")
    assert (row["lowest_class_recall"], row["highest_class_recall"]) == ("0", "100")
    assert "balanced" in terminal
    assert "50.00" in terminal


def test_classes_of_one_size_need_no_second_column(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], [30, 20])  # the larger has 1.5 times the smaller, and no more
    keep(tmp_path, labels, 2)
    text, row, terminal = shown(tmp_path, [record(labels == 0, 2)])
    assert "balanced" not in text + terminal
    assert (row["top1"], row["macro_recall"]) == ("60", "50")
    keep(tmp_path, np.repeat([0, 1], [31, 20]), 2, classes=2)
    text, _, _ = shown(tmp_path, [record(np.ones(51, bool), 2, config={"dataset": {"classes": 2}})])
    assert "| balanced |" in text


def test_recall_over_seeds_agrees_with_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(3, size=200, p=[0.7, 0.25, 0.05])
    keep(tmp_path, labels, 3)
    runs = [rng.random(200) < 0.8 - 0.3 * labels for _ in range(3)]
    expected = [100 * balanced_accuracy_score(labels, np.where(right, labels, (labels + 1) % 3)) for right in runs]
    (table,) = build_tables([record(run, 3, seed) for seed, run in enumerate(runs)], labels=load_labels(tmp_path))
    (row,) = table.rows
    assert row.recall is not None
    assert row.recall.mean.mean == pytest.approx(np.mean(expected))
    assert row.recall.mean.half == pytest.approx(4.302652729911275 * np.std(expected, ddof=1) / 3**0.5)
    of_classes = [100 * np.mean([run[labels == k].mean() for run in runs]) for k in range(3)]
    assert (row.recall.low, row.recall.high) == pytest.approx((min(of_classes), max(of_classes)))


def test_a_class_without_test_images_counts_nowhere(tmp_path: Path) -> None:
    keep(tmp_path, np.repeat([0, 2], [10, 10]), 3)
    text, row, _ = shown(tmp_path, [record(np.arange(20) < 10, 3)])
    assert "| balanced |" in text
    assert row["macro_recall"] == "50"


def test_without_labels_the_columns_are_blank(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], [475, 25])
    keep(tmp_path, labels, 2, classes=[0, 1])  # another choice from the same data
    text, row, _ = shown(tmp_path, [record(labels == 0, 2)])
    assert "balanced" not in text
    assert row["macro_recall"] == row["lowest_class_recall"] == ""


def test_many_classes_keep_their_labels(tmp_path: Path) -> None:
    labels = np.arange(1000)[::-1].copy()
    keep(tmp_path, labels, 1000)
    (found,) = load_labels(tmp_path).values()
    assert (found.array == labels).all()


def test_labels_are_written_once(tmp_path: Path) -> None:
    path = keep(tmp_path, np.arange(5), 5)
    before = path.stat().st_mtime_ns
    assert keep(tmp_path, np.arange(5), 5, per_class=7, flip=True, classes=None) == path  # about training alone
    assert path.stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace('"n": 5', '"n": 4'), "was edited after it was written"),
        (lambda text: text[:-30], "is not valid JSON"),
        (lambda text: "[]", "does not hold the labels"),
    ],
)
def test_damaged_labels_are_one_sentence(tmp_path: Path, damage: Any, message: str) -> None:
    path = keep(tmp_path, np.arange(5), 5)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=rf"{path.name} {message}.*: restore it from git, or delete it"):
        load_labels(tmp_path)


def test_swapped_labels_are_noticed(tmp_path: Path) -> None:
    path = keep(tmp_path, np.arange(5), 5)
    other = keep(tmp_path, np.arange(5)[::-1].copy(), 5, classes=5)
    path.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="is of another test set"):
        load_labels(tmp_path)


def test_labels_that_do_not_fit_their_records_are_refused(tmp_path: Path) -> None:
    keep(tmp_path, np.arange(5), 5)
    with pytest.raises(UserError, match=r"are 5 of 5 classes, but cell .* was judged on 20 of 3"):
        build_tables([record(np.ones(20, bool), 3)], labels=load_labels(tmp_path))


def test_a_run_keeps_the_labels_and_makes_them_good(kd: Kdbench) -> None:
    assert kd.run("method=scratch").code == 0
    (path,) = (kd.results / FOLDER).iterdir()
    text = path.read_bytes()
    assert (load_labels(kd.results).popitem()[1].array == digits_labels()).all()
    for damage in (path.unlink, lambda: path.write_bytes(text[:100])):
        damage()
        again = kd.run("method=scratch")
        assert "0 trained, 1 already done" in again.out
        assert path.read_bytes() == text
    path.write_bytes(text[:100])
    told = kd("report", "--check")
    assert told.code == 1
    assert told.err.count("\n") == 1
    assert "the next `kdbench run` of one of its cells writes it again" in told.err


# ---- the committed store --------------------------------------------------------------------------------------------


def digits_labels() -> np.ndarray[Any, Any]:
    return DatasetConfig.of({"name": "digits"}).build().test.labels.numpy()


def test_every_committed_record_of_classes_has_its_labels() -> None:
    known = load_labels(RESULTS)
    records = [record for record in Store(RESULTS).load() if record.correct]
    assert len(records) >= 123
    for record in records:
        if of_run(record.config["dataset"], record.cell.seed) != record.config["dataset"]:
            continue  # each run has its own
        sizes = class_sizes(known, record)
        assert sizes is not None
        assert not sizes.unequal or record.cell.dataset == "mnist"  # whose students are judged on USPS, too
        assert sizes.counts.sum() == record.dataset.n_test


def test_committed_digits_agree_with_scikit_learn() -> None:
    labels = digits_labels()
    (path,) = (RESULTS / "tables").glob("digits-resnet20-resnet8x0.25-digits60-*.csv")
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    records = [r for r in Store(RESULTS).load() if (r.cell.dataset, r.cell.protocol) == ("digits", "digits60")]
    for row in rows:
        runs = [r for r in records if r.cell.method == row["method"]]
        assert len(runs) == 3
        scores = []
        for run in runs:
            assert run.correct
            guess = np.where(unpack_correct(run.correct), labels, (labels + 1) % 10)
            scores.append(100 * balanced_accuracy_score(labels, guess))
        assert float(row["macro_recall"]) == pytest.approx(np.mean(scores))


def test_the_files_say_what_they_are_of() -> None:
    for path in (RESULTS / FOLDER).glob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        assert path.name.startswith(data["dataset"])
        assert len(data["sha256"]) == 64
