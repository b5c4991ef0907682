"""Records: identity, validation, and the seal that shows edits."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re

import numpy as np
import pytest
from factories import N_TEST, make_record
from pydantic import ValidationError

from kdbench.results.record import Correct, Record, canonical_json, cell_id, dump, flatten, pack_correct, parse
from kdbench.results.record import unpack_correct as unpack


def edited(record: Record, change: tuple[str, ...], value: object, reseal: bool = False) -> str:
    """The file of `record` with the value at path `change` replaced, by hand or (`reseal`) with a matching sha256."""
    data = json.loads(dump(record))
    part = data
    for key in change[:-1]:
        part = part[key]
    part[change[-1]] = value
    if reseal:
        data.pop("sha256")
        data["sha256"] = hashlib.sha256(canonical_json(data).encode()).hexdigest()
    return json.dumps(data)


def test_cell_id_is_the_hash_of_the_sorted_compact_json() -> None:
    text = '{"a":{"b":[1,2.5,null,true],"c":"é"},"seed":0}'
    expected = hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
    assert cell_id({"seed": 0, "a": {"c": "é", "b": (1, 2.5, None, True)}}) == expected


def test_cell_id_ignores_the_order_of_keys_and_the_spelling_of_numbers_but_not_values() -> None:
    config = {"method": {"temperature": 4.0, "weights": {"ce": 1, "kd": 0.9}}, "seed": 0}
    shuffled = {"seed": 0.0, "method": {"weights": {"kd": 0.9, "ce": 1.0}, "temperature": 4}}
    assert cell_id(config) == cell_id(shuffled)
    assert cell_id(config) != cell_id(config | {"seed": 1})
    assert cell_id({"on": True}) != cell_id({"on": 1})
    assert cell_id({"order": [1, 2]}) != cell_id({"order": [2, 1]})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_canonical_json_has_no_word_for_nan(number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"lr": [number]})


def test_flatten_joins_keys_with_dots() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, {"x": 2}]}, "e": {}, "f": None}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [1, {"x": 2}], "e": {}, "f": None}


def test_dump_and_parse_are_inverse() -> None:
    for record in (make_record(), make_record(teacher=None, cell={"teacher": None}), make_record(status="diverged")):
        assert parse(dump(record)) == record
        assert dump(parse(dump(record))) == dump(record)


def test_the_seal_is_the_sha256_of_the_rest() -> None:
    data = json.loads(dump(make_record()))
    seal = data.pop("sha256")
    assert seal == hashlib.sha256(canonical_json(data).encode()).hexdigest()


def test_a_file_has_one_line_for_each_field() -> None:
    lines = dump(make_record()).splitlines()
    assert lines[0] == "{"
    assert lines[-1] == "}"
    assert [json.loads("{" + line.rstrip(",") + "}").popitem()[0] for line in lines[1:-1]] == [
        *(name for name in Record.model_fields if name not in Record.ADDED),
        "sha256",
    ]


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (("metrics", "last"), 71.0),
        (("metrics", "oracle"), 99.0),
        (("cell", "method"), "dkd"),
        (("teacher", "accuracy"), 60.0),
        (("cost", "train_seconds"), 1.0),
        (("config", "method", "temperature"), 8.0),
        (("curves", "ce"), []),
        (("created",), "2027-01-01T00:00:00Z"),
        (("sha256",), "0" * 64),
    ],
)
def test_an_edited_record_is_refused(change: tuple[str, ...], value: object) -> None:
    with pytest.raises(ValueError, match="was edited after it was written"):
        parse(edited(make_record(), change, value))


def test_a_resealed_record_still_has_to_match_its_cell_and_its_examples() -> None:
    with pytest.raises(ValueError, match="the config belongs to cell"):
        parse(edited(make_record(), ("config", "method", "temperature"), 8.0, reseal=True))
    with pytest.raises(ValueError, match=r"the accuracy 71\.0 is not that of the examples, 70\.0"):
        parse(edited(make_record(), ("metrics", "last"), 71.0, reseal=True))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        ('{"schema_version": NaN, "sha256": 0}', "is not valid JSON"),
        ("[]", "is not a kdbench record"),
        ('{"name": "someone else\'s"}', "is not a kdbench record"),
        ('{"schema_version": 2, "sha256": ""}', "has schema version 2, this kdbench reads 1"),
    ],
)
def test_what_is_no_record_is_named(text: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse(text)


def test_unknown_and_missing_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="surprise: Extra inputs"):
        parse(edited(make_record(), ("surprise",), 1, reseal=True))
    with pytest.raises(ValidationError, match=r"cost\.colour"):
        make_record(cost={"colour": "red"})
    parts = make_record().model_dump()
    parts.pop("environment")
    with pytest.raises(ValidationError, match="environment"):
        Record.model_validate(parts)


def test_a_record_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_record().status = "diverged"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"cell": {"seed": 5}}, "seed 0 is not the cell's 5"),
        ({"cell": {"id": "0" * 16}}, "the config belongs to cell"),
        ({"config": {"protocol": None, "lr": math.nan}}, "JSON compliant"),
        ({"config": {"thing": object()}}, "not JSON"),
        ({"metrics": {"last": 101.0}}, "101 is no percentage: top-1 lies between 0 and 100"),
        ({"metrics": None}, "a finished cell has metrics"),
        ({"correct": None}, "a finished cell has metrics"),
        ({"metrics": {"last": 70.0 + 2e-6}}, "not that of the examples"),
        ({"dataset": {"n_test": N_TEST + 1}}, "the test set has 10001"),
        ({"cost": {"train_seconds": math.nan}}, "finite"),
        ({"cost": {"images_seen": -1}}, "greater than or equal to 0"),
        ({"dataset": {"sha256": "D" * 64}}, "pattern"),
        ({"status": "diverged", "reason": None}, "a diverged cell has a reason"),
        ({"status": "diverged", "correct": {"bits": "", "n": 0}}, "a diverged cell has a reason"),
        ({"info": {"control": "best"}}, "'scratch', 'smoothing' or 'kd'"),
    ],
)
def test_records_that_contradict_themselves_are_refused(overrides: dict, problem: str) -> None:
    with pytest.raises((ValidationError, TypeError, ValueError), match=re.escape(problem)):
        make_record(**overrides)


def test_accuracy_within_the_tolerance_is_accepted() -> None:
    assert make_record(metrics={"last": 70.0 + 5e-7}).metrics is not None


def test_curves_keep_null_for_what_is_not_finite() -> None:
    record = make_record(curves={"ce": [1.5, math.nan, -math.inf, np.float32(0.5)]})
    assert record.curves["ce"] == [1.5, None, None, 0.5]
    assert '"ce": [1.5, null, null, 0.5]' in dump(record)
    assert parse(dump(record)) == record


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_packing_correctness_round_trips(n: int) -> None:
    correct = np.random.default_rng(n).random(n) < 0.5
    packed = pack_correct(correct)
    assert len(base64.b64decode(packed.bits)) == math.ceil(n / 8)
    np.testing.assert_array_equal(unpack(packed), correct)
    assert unpack(packed).dtype == bool


def test_the_first_example_is_the_highest_bit() -> None:
    assert base64.b64decode(pack_correct([1, 0, 0, 0, 0, 0, 0, 0, 1]).bits) == bytes([0b10000000, 0b10000000])


@pytest.mark.parametrize("bad", [[[True]], [0, 2], [0.5]])
def test_only_booleans_in_one_row_are_packed(bad: list) -> None:
    with pytest.raises(ValueError, match="one boolean per example"):
        pack_correct(bad)


@pytest.mark.parametrize(
    ("raw", "n", "problem"),
    [(b"\xff\xff", 8, "do not hold 8"), (b"", 1, "do not hold 1"), (b"\xff", 7, "do not hold 7")],
)
def test_bits_of_another_length_are_refused(raw: bytes, n: int, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Correct(bits=base64.b64encode(raw).decode(), n=n)


def test_bits_that_are_not_base64_are_refused() -> None:
    with pytest.raises(ValidationError, match="not base64"):
        Correct(bits="###", n=1)


def test_records_without_an_agreement_keep_their_text() -> None:
    """The field came later: what was sealed without it must still be the same text."""
    old, new = (
        make_record(),
        make_record(teacher={"agreement": {"max_abs_logit": 0.1, "top1_percent": 99.5, "images": 9}}),
    )
    assert "agreement" not in dump(old)
    assert '"agreement": {' in dump(new)
    assert parse(dump(old)) == old
    assert parse(dump(new)) == new
