"""Runs that draw their own data and train their own teachers, and the data that were published so."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from conftest import Kdbench
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from test_cli import one_sentence

from kdbench.data.datasets import Dataset
from kdbench.data.privileged import EXPERIMENTS, Privileged, relevant_largest
from kdbench.engine.cell import cell_in, cells_of, teachers_of
from kdbench.engine.job import Job
from kdbench.engine.students import Student, Students
from kdbench.errors import UserError
from kdbench.results.record import Record
from kdbench.settings import of_run
from kdbench.teaching.teachers import Teachers

DRAWS = 12

OWN = (
    "method=[scratch,generalised_distillation_code]",
    "pair.teacher=linear",
    "pair.student=linear",
    "dataset=clean_labels",
    "dataset.seed=run",
    "teacher.seed=run",
    "teacher.dataset.sees=privileged",
    "protocol.epochs=2",
)


def features(data: Dataset, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Standardised, as a network is shown them, (n, d); and the classes."""
    part = getattr(data, split)
    pixels = part.images.numpy().reshape(len(part), -1) / 255
    return (pixels - np.array(data.mean)) / np.array(data.std), part.labels.numpy()


def reached(data: Dataset) -> float:
    """Test accuracy, in percent, of a logistic regression that nothing holds back, as 1,000 epochs nearly are."""
    return float(
        100 * LogisticRegression(C=10.0, max_iter=1000).fit(*features(data, "train")).score(*features(data, "test"))
    )


# ---- the experiments -----------------------------------------------------------------------------------------------

PUBLISHED = {
    "clean_labels": (96, 88),
    "clean_features": (90, 68),
    "relevant_features": (98, 89),
    "relevant_per_set": (96, 50),
    "relevant_per_sample": (96, 50),
    "relevant_largest": (96, 55),
}
"""Accuracy with the privileged and with the regular features (distillation.tex). The fourth experiment is published as
55 %, which neither its text nor its code can give: what students learn of other features is worth nothing, 50 %."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_linear_classifier_reaches_what_was_published(name: str) -> None:
    for sees, published in zip(("privileged", "regular"), PUBLISHED[name], strict=True):
        mean = np.mean([reached(Privileged(name, sees, seed=seed).build()) for seed in range(DRAWS)])
        assert mean == pytest.approx(published, abs=4)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_teachers_see_the_same_samples_and_features_are_standardised(name: str) -> None:
    seen, privileged = Privileged(name).build(), Privileged(name, "privileged").build()
    beside = seen.beside["paired"]
    assert seen.paired is not None
    assert beside.follow
    for one in (beside.split.images, seen.paired.train.images):
        assert (one == privileged.train.images).all()
    assert (seen.test.labels == privileged.test.labels).all()
    for data in (seen, privileged):
        shown, _ = features(data, "train")
        np.testing.assert_allclose(shown.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(shown.std(0), 1, atol=1e-6)
    assert seen.spec.shape == (50, 1, 1)
    assert seen.spec.shape_for_teacher == privileged.spec.shape


def test_what_matters_is_the_same_for_all_for_a_set_or_for_a_sample() -> None:
    """By the features that go with the class: three in both sets, three others in each, or all of them a little."""

    def telling(name: str, split: str) -> set[int]:
        x, y = features(Privileged(name, n_train=20000, n_test=20000).build(), split)
        return set(np.flatnonzero(abs(np.corrcoef(x.T, y)[-1, :-1]) > 0.1).tolist())

    always = telling("relevant_features", "train")
    assert always == telling("relevant_features", "test")
    assert always <= {0, 1, 2}
    train, test = (telling("relevant_per_set", split) for split in ("train", "test"))
    assert train != test
    assert max(len(train), len(test)) <= 3
    assert not telling("relevant_per_sample", "train")
    x, theirs, _ = relevant_largest(np.ones(50), 9, np.random.RandomState(0))
    assert (theirs == np.sort(x, axis=1)[:, ::-1][:, :3]).all()


# ---- each run its own ----------------------------------------------------------------------------------------------


def test_draws_are_those_of_a_seed_and_what_is_drawn_has_one_hash() -> None:
    first, again, other = (Privileged("clean_labels", seed=seed).build() for seed in (0, 0, 1))
    assert (first.test.images == again.test.images).all()
    assert (first.test.images != other.test.images).any()
    assert first.content_hash == other.content_hash
    assert first.content_hash != Privileged("clean_features").build().content_hash
    with pytest.raises(UserError, match=r"dataset.seed=run has each run draw its own data.*give a number"):
        Privileged("clean_labels", seed="run").build()


@pytest.fixture
def own(kd: Kdbench) -> tuple[Kdbench, list[Record]]:
    result = kd("run", *OWN, "seed=[0,1]")
    assert result.code == 0, result.out + result.err
    assert "the mean, as each run has one of its own" in result.out
    return kd, kd.records()


def test_each_run_has_its_data_and_its_teacher(own: tuple[Kdbench, list[Record]]) -> None:
    kd, records = own
    taught = [record for record in records if record.teacher]
    assert [record.config["teacher"]["seed"] for record in taught] == ["run", "run"]
    assert len({record.teacher.sha256 for record in taught if record.teacher}) == 2
    assert len({record.taught_by for record in taught}) == 1
    for record in taught:
        (recipe, _), *rest = cell_in(record).teachers
        assert not rest
        assert (recipe["seed"], recipe["dataset"]["seed"]) == (record.cell.seed, record.cell.seed)
        assert record.teacher
        card = Teachers(kd.results).known(recipe, record.teacher.sha256)
        assert card
    assert len(list((kd.results / "tables").glob("clean_labels-linear*.md"))) == 1
    assert not (kd.results / "labels").exists()  # each run has its own

    assert "4 already done" in kd("run", *OWN, "seed=[0,1]").out
    shown = kd("show", taught[1].cell.id)
    assert "the same here" in shown.out
    assert "dataset.seed=run" in shown.out
    assert "teacher.seed=run" in shown.out
    again = kd("reproduce", taught[1].cell.id)
    assert again.code == 0, again.out + again.err
    assert "as recorded" in again.out


def test_a_student_of_such_a_run_is_kept_as_what_it_is(kd: Kdbench) -> None:
    result = kd("run", *OWN, "seed=1", "keep=student")
    assert result.code == 0, result.out + result.err
    cards = [Student.of(path).card for path in Students(kd.results).all()]
    assert [card.recipe["dataset"]["seed"] for card in cards] == [1, 1]
    assert [card.recipe["teacher"]["seed"] for card in cards if "teacher" in card.recipe] == [1]
    assert all(Student.of(path).load() for path in Students(kd.results).all())


def test_a_subset_may_be_drawn_by_each_run(kd: Kdbench) -> None:
    subset = "dataset.subset={n: 100, order: drawn, seed: run}"
    result = kd.run("method=kd", subset, "dataset.per_class=null", "teacher.seed=run", "seed=[0,1]")
    assert result.code == 0, result.out + result.err
    assert "100 images, drawn by each run" in result.out
    one, two = kd.records()
    assert one.teacher
    assert two.teacher
    assert one.teacher.sha256 != two.teacher.sha256
    trained = kd("teacher", "train", "protocol.epochs=1", subset, "teacher.seed=run", "seed=[5,6]")
    assert trained.out.count("training teacher") == 2
    one_sentence(kd("teacher", "cache", subset), "dataset.subset.seed=run", "give a number")


def test_the_teachers_of_a_job_are_those_of_its_runs() -> None:
    config: dict[str, Any] = {
        "method": {"kd": {"_target_": "methods.logits.kd.KD"}},
        "pair": {"teacher": "resnet20", "student": "resnet8"},
        "dataset": {"name": "digits"},
        "protocol": {
            "name": "x",
            "epochs": 1,
            "batch_size": 8,
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
            "schedule": {"kind": "constant"},
        },
        "teacher": {"method": {"_target_": "methods.controls.scratch.Scratch"}, "seed": "run"},
        "seed": [3, 4],
        "paths": {"results": "results", "work": "runs"},
    }
    job = Job.model_validate(config)
    assert [recipe["seed"] for recipe, _ in teachers_of(job)] == [3, 4]
    assert [cell.teacher["seed"] for cell in cells_of(job) if cell.teacher] == [3, 4]
    assert len({dataclasses.replace(cell, name="x").config["teacher"]["seed"] for cell in cells_of(job)}) == 1


def test_a_seed_of_the_run_is_filled_in_wherever_it_stands() -> None:
    config = {"seed": "run", "name": "run", "dataset": {"subset": {"seed": "run"}}, "teachers": [{"seed": "run"}, 5]}
    assert of_run(config, 7) == {
        "seed": 7,
        "name": "run",
        "dataset": {"subset": {"seed": 7}},
        "teachers": [{"seed": 7}, 5],
    }


def test_a_teacher_of_what_students_see_is_told_where_to_look(kd: Kdbench) -> None:
    result = kd("run", *(each for each in OWN if not each.startswith("teacher.dataset")))
    assert result.code == 1
    assert "of what is drawn, as dataset=clean_labels, teacher.dataset.sees=privileged" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("dataset.seed=walk",), "dataset.seed='walk': input should be a valid integer or input should be 'run'"),
        (("dataset.name=noisy",), "there is no experiment 'noisy'"),
        (("dataset.sees=both",), "dataset.sees='both': input should be 'regular' or 'privileged'"),
        (("dataset.n_train=1",), "dataset.n_train=1: input should be greater than or equal to 2"),
        (("teacher.seed=walk",), "teacher.seed='walk'"),
    ],
)
def test_wrong_settings_are_told(kd: Kdbench, overrides: tuple[str, ...], named: str) -> None:
    result = kd("run", *OWN, *overrides)
    one_sentence(result, named)
