"""Claims: the committed ones against what the sources print, and every rule of "paper vs ours" on made-up records."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torchvision
import yaml
from factories import make_record

from kdbench import models, shipped
from kdbench.errors import UserError
from kdbench.paths import conf_dir
from kdbench.registry import Entry, methods
from kdbench.report.claims import claims_tables, coverage_table, render_claims
from kdbench.report.reproductions import groups_of
from kdbench.reproductions import load_reproductions
from kdbench.results.claims import ROLES, Claim, Comparison, _of_data, compare_claims, load_claims
from kdbench.results.record import Record
from kdbench.results.verdict import Printed

CLAIMS = Path(__file__).parents[1] / "results" / "claims"


@pytest.fixture(scope="module")
def committed() -> list[Claim]:
    return load_claims()


# ---- the committed claims --------------------------------------------------------------------------------------------

# https://github.com/HobbitLong/RepDistiller, README at b84f547, both tables
SAME = (
    "wrn-40-2:wrn-16-2 wrn-40-2:wrn-40-1 resnet56:resnet20 resnet110:resnet20 resnet110:resnet32 resnet32x4:resnet8x4 "
)
OTHER = (
    "vgg13:vgg8 vgg13:mobilenetv2-0.5 resnet50-cifar:mobilenetv2-0.5 resnet50-cifar:vgg8 resnet32x4:shufflenetv1 "
    "resnet32x4:shufflenetv2 wrn-40-2:shufflenetv1"
)
REPDISTILLER = {
    "KD": "74.92 73.54 70.66 70.67 73.08 73.33 72.98 67.37 67.35 73.81 74.07 74.45 74.83",
    "FitNet": "73.58 72.24 69.21 68.99 71.06 73.50 71.02 64.14 63.16 70.69 73.59 73.54 73.73",
    "AT": "74.08 72.77 70.55 70.22 72.31 73.44 71.43 59.40 58.58 71.84 71.73 72.73 73.32",
    "PKT": "74.54 73.45 70.34 70.25 72.61 73.64 72.88 67.13 66.52 73.01 74.10 74.69 73.89",
    "CRD": "75.48 74.14 71.16 71.46 73.48 75.51 73.94 69.73 69.11 74.30 75.11 75.65 76.05",
}


@pytest.mark.parametrize("method", REPDISTILLER)
def test_repdistillers_table_is_here_number_for_number(committed: list[Claim], method: str) -> None:
    printed = zip((SAME + OTHER).split(), REPDISTILLER[method].split(), strict=True)
    rows = [c for c in committed if c.source == "HobbitLong/RepDistiller@b84f547 README" and c.method == method]
    assert {f"{c.teacher}:{c.student}": c.value for c in rows} == {pair: float(value) for pair, value in printed}
    assert {(c.selection, c.epochs, c.protocol) for c in rows} == {("last", "240", "crd240")}
    assert {c.kd_term for c in rows} == {"n/a" if method == "KD" else "no"}


def test_teachers_and_students_alone_are_repdistillers(committed: list[Claim]) -> None:
    alone = {c.student: c for c in committed if c.reported_by == "HobbitLong/RepDistiller" and c.method == "CE"}
    printed = {"resnet56": 72.34, "resnet32x4": 79.42, "resnet50-cifar": 79.34, "resnet20": 69.06, "vgg8": 70.36}
    assert {name: alone[name].value for name in printed} == printed
    assert {c.config for c in alone.values()} == {"scratch"}


def test_committed_claims_by_source(committed: list[Claim]) -> None:
    counts = Counter(claim.origin for claim in committed)
    assert len(committed) >= 1330
    some = {
        "HobbitLong/RepDistiller": 177,
        "xuguodong03/SSKD": 123,
        "sunshangquan/logit-standardization-KD": 87,
        "yufanLIU/IRG": 72,
        "winycg/MCL-OKD": 55,
        "megvii-research/mdistiller": 24,
        "TorchSSL/TorchSSL": 26,
    }
    assert {name: counts[name] for name in some} == some
    assert len(counts) == len(list(CLAIMS.glob("*.csv")))


def test_each_file_holds_one_source_sorted_under_one_header() -> None:
    for path in CLAIMS.glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == [name for name in Claim.model_fields if name in rows[0]], path
        assert list(rows[0])[:17] == list(Claim.model_fields)[:17], path
        origins = {row["source"].split()[0].partition("@")[0] for row in rows}
        assert {re.sub("[/:]", "-", origin) for origin in origins} == {path.stem}
        assert all(re.search(r"@[0-9a-f]{7}|^arXiv:\d{4}\.\d{5} ", row["source"]) for row in rows), path
        keys = [
            (row["dataset"], *map(natural, (row["teacher"], row["student"])), row["method"].lower()) for row in rows
        ]
        assert all(a <= b for a, b in pairwise(keys)), path


def natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def test_configs_and_networks_exist(committed: list[Claim]) -> None:
    assert {c.config for c in committed} - {""} <= {entry.name for entry in methods()}
    networks = {name for c in committed for name in (c.teacher, c.student)} - ROLES - {""}
    here = {name for name in networks if "@" not in name}
    assert {name for name in here if "/" not in name} <= set(models.names())
    assert {name.removeprefix("torchvision/") for name in here if "/" in name} <= set(torchvision.models.list_models())


def test_a_config_is_the_variant_that_the_source_trained(committed: list[Claim]) -> None:
    found = {(c.source.partition("@")[0], c.method, c.config, c.settings, c.kd_term) for c in committed}
    assert ("HobbitLong/RepDistiller", "FitNet", "fitnet_joint", "", "no") in found
    assert ("xuguodong03/SSKD", "FitNet", "fitnet_joint", "", "yes") in found
    assert ("sseung0703/KD_methods_with_TF", "FitNet", "fitnet", "", "unknown") in found  # two stages
    assert ("DefangChen/SimKD", "KD", "kd", "weights.ce=1 weights.kd=1", "n/a") in found
    assert ("keras-team/keras-io", "KD", "kd", "temperature=10", "n/a") in found
    assert not [c for c in committed if c.method in ("KD++", "reversed KD", "DML (peer ensemble)", "CRD") and c.config]


def test_networks_of_one_name_stay_apart(committed: list[Claim]) -> None:
    students = {(c.source.partition("@")[0], c.student) for c in committed}
    assert ("winycg/HSAKD", "mobilenetv2-0.5-stride1stem@HSAKD") in students
    assert ("xuguodong03/SSKD", "mobilenetv2-0.5") in students
    assert ("sseung0703/KD_methods_with_TF", "resnet8-deep@KD_methods_with_TF") in students
    assert ("yuanli2333/Teacher-free-Knowledge-Distillation", "mobilenetv2-0.5") not in students
    resnet18 = {c.student for c in committed if "resnet18" in c.student and c.dataset != "imagenet"}
    assert resnet18
    assert all("@" in name for name in resnet18)  # the 3x3 stem of small images is not torchvision's


def test_errors_are_stored_as_printed_and_converted_once(committed: list[Claim]) -> None:
    (dml,) = (c for c in committed if c.method == "DML" and c.student == "resnet32@MCL-OKD")
    assert (dml.metric, dml.value) == ("top1_err", 24.92)
    assert (dml.accuracy, dml.student_accuracy, dml.quantity) == (75.08, 71.09, "top1")
    assert dml.settings == 'temperature=3 variant="simultaneous"'
    offered = [c for c in committed if c.metric == "top1_acc"]
    assert all(c.accuracy == c.value for c in offered)


def test_claims_that_can_be_trained_again_name_arms_that_there_are(committed: list[Claim]) -> None:
    groups = load_reproductions()
    assert {c.group for c in committed} - {""} == set(groups)
    for each in committed:
        if each.reproduction:
            arms = groups[each.group].arms
            named = {each.reproduction.partition("/")[2], each.baseline, each.control} - {""}
            assert named <= set(arms), each
            rows = [other for other in committed if other.reproduction == f"{each.group}/{each.baseline}"]
            assert not each.baseline or rows or each.student_value is not None, each  # else no gain is claimed


def test_what_is_from_memory_says_so(committed: list[Claim]) -> None:
    remembered = {c.origin for c in committed if c.provenance == "memory"}
    assert remembered == {"snudatalab/KegNet", "arXiv:1902.03393", "arXiv:1904.07734"}
    assert "98.90" not in render_claims(*groups_of([c for c in committed if c.provenance == "memory"], []))["claims.md"]


def test_printed_digits_runs_and_spread_are_read(committed: list[Claim]) -> None:
    """GT-RIPL's figure: LwF, domain: 71.02 (1.26), ten runs; Hinton: 74 of 10,000 test images; Avalanche's .88."""
    by_value = {(c.origin, c.value): c.printed for c in committed}
    assert by_value["GT-RIPL/Continual-Learning-Benchmark", 71.02] == Printed(71.02, 2, runs=10, sd=1.26)
    assert by_value["arXiv:1503.02531", 74.0] == Printed(99.26, 2)
    assert by_value["arXiv:1503.02531", 74.0].rounding == pytest.approx(0.005)  # half an image
    assert by_value["ContinualAI/continual-learning-baselines", 88.0].rounding == 0.5
    assert by_value["lopezpaz/distillation_privileged_information", 95.0] == Printed(95.0, 0, runs=100, sd=1.0)


def test_doubtful_numbers_are_left_out_and_wrong_headings_corrected(committed: list[Claim]) -> None:
    kd = [c for c in committed if c.method == "KD"]
    assert not [c for c in kd if c.value == 67.65]
    assert not [c for c in kd if c.source.startswith("xuguodong03/SSKD")]
    assert not [c for c in committed if c.origin == "chengshengchan/model_compression"]
    assert not [c for c in kd if c.source.startswith("zju-vipa/Fast-Datafree") and c.dataset == "cifar10"]
    (dkd,) = (c for c in committed if c.source.startswith("megvii-research") and c.value == 77.07)
    assert (dkd.method, dkd.student) == ("DKD", "shufflenetv2")
    assert dkd.selection == "best-test"


# ---- reading ---------------------------------------------------------------------------------------------------------

ROW = {
    "method": "KD",
    "config": "kd",
    "settings": "",
    "reported_by": "someone/kd",
    "teacher": "resnet56",
    "student": "resnet20",
    "dataset": "cifar100",
    "metric": "top1_acc",
    "value": "70.66",
    "selection": "last",
    "epochs": "240",
    "protocol": "crd240",
    "kd_term": "n/a",
    "teacher_value": "72.34",
    "student_value": "69.06",
    "source": "someone/kd@1234567 README",
    "notes": "",
}


def write(root: Path, *rows: dict[str, str]) -> Path:
    path = root / "claims" / "mine.csv"
    path.parent.mkdir(exist_ok=True)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(file.getvalue(), encoding="utf-8")
    return path


def test_a_roots_own_claims_come_before_the_bundled(tmp_path: Path, committed: list[Claim]) -> None:
    assert load_claims(tmp_path) == committed
    write(tmp_path, ROW)
    (claim,) = load_claims(tmp_path)
    assert (claim.value, claim.teacher_value, claim.pair) == (70.66, 72.34, "resnet56 → resnet20")
    write(tmp_path, {key: ROW[key] for key in ROW if key not in ("settings", "protocol", "teacher_value", "notes")})
    assert load_claims(tmp_path)[0].teacher_accuracy is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": "resnet21"}, "student 'resnet21': 'resnet21' is not a network of kdbench"),
        ({"teacher": "resnet5 6@x"}, "teacher 'resnet5 6@x'"),
        ({"selection": "best"}, "selection 'best'"),
        ({"value": "120.3"}, "value=120.3 is no share of 100"),
        ({"value": "nan"}, "value 'nan'"),
        ({"value": ""}, "value ''"),
        ({"metric": "accuracy"}, "metric 'accuracy'"),
        ({"metric": "top1_errors"}, "a number of errors needs n_test"),
        ({"spread": "0.2"}, "a spread needs seeds"),
        ({"baseline": "scratch"}, "a baseline or a control is an arm"),
        ({"reproduction": "keras_example"}, "reproduction 'keras_example': give NAME/ARM"),
        ({"provenance": "hearsay"}, "provenance 'hearsay'"),
        ({"epochs": "many"}, "epochs 'many'"),
        ({"kd_term": ""}, "kd_term ''"),
        ({"protocol": "crd24"}, "there is no protocol 'crd24'"),
        ({"settings": "temperature=hot"}, '"temperature=hot" is not key=value'),
        ({"config": "", "settings": "temperature=3"}, "settings without a config"),
        ({"source": ""}, "source ''"),
    ],
)
def test_a_bad_row_is_named_in_one_sentence(tmp_path: Path, change: dict[str, str], said: str) -> None:
    path = write(tmp_path, dict.fromkeys(change, "") | ROW, ROW | {"student": "resnet32"} | change)
    with pytest.raises(UserError) as error:
        load_claims(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{path}:3: ")
    assert said in message
    assert "\n" not in message
    assert message.endswith("mend the row.")


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, ROW | {"colour": "red"})
    with pytest.raises(UserError, match=r"mine\.csv:1: unknown column 'colour'"):
        load_claims(tmp_path)
    write(tmp_path, {key: ROW[key] for key in ROW if key != "selection"})
    with pytest.raises(UserError, match=r"mine\.csv:1: no column 'selection'"):
        load_claims(tmp_path)
    write(tmp_path, ROW, ROW | {"method": "kd"}, ROW | {"notes": "copied"})
    with pytest.raises(UserError, match=r"mine\.csv:4: the same claim stands in .*mine\.csv:2: delete one"):
        load_claims(tmp_path)
    write(tmp_path, ROW)
    path.write_text(path.read_text() + "KD,kd\n")
    with pytest.raises(UserError, match=r"mine\.csv:3: the row has not 17 fields"):
        load_claims(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"mine\.csv cannot be read"):
        load_claims(tmp_path)
    path.write_text("")
    with pytest.raises(UserError, match=r"mine\.csv:1: no column 'method'"):
        load_claims(tmp_path)


# ---- comparing -------------------------------------------------------------------------------------------------------

CIFAR100 = yaml.safe_load((conf_dir() / "dataset" / "cifar100.yaml").read_text())
KD = {"weights": {"ce": 0.1, "kd": 0.9}}


def claim(**changes: Any) -> Claim:
    return Claim.model_validate(ROW | changes)


def record(top1: float, seed: int = 0, method: str = "kd", **overrides: Any) -> Record:
    """A record of KD under crd240 on the whole of CIFAR-100, as kdbench ships it."""
    config = {
        "method": {"name": method, **(KD if method == "kd" else {})},
        "dataset": {key: value for key, value in CIFAR100.items() if key != "root"},
    }
    for group in ("method", "dataset", "protocol"):
        config[group] = config.get(group, {}) | overrides.get("config", {}).get(group, {})
    data = {"sha256": CIFAR100["sha256"]} | overrides.get("dataset", {})
    rest = {key: value for key, value in overrides.items() if key not in ("config", "dataset")}
    return make_record(method, seed, top1, config=config, dataset=data, **rest)


def compare(claims: Claim | list[Claim], *records: Record) -> Comparison:
    (comparison,) = compare_claims(claims if isinstance(claims, list) else [claims], records)
    return comparison


def three(mean: float, spread: float, **overrides: Any) -> list[Record]:
    return [record(mean + d, seed, **overrides) for seed, d in enumerate((-spread, 0.0, spread))]


@pytest.mark.parametrize(
    ("mean", "spread", "status"),
    [
        (70.66, 0.1, "reproduced"),
        (70.96, 0.1, "reproduced"),  # .3 above, 2 SE = 2 * .1 / sqrt(3) = .115
        (70.36, 0.1, "reproduced"),
        (70.97, 0.1, "above"),
        (70.35, 0.1, "below"),
        (70.08, 0.5, "below"),  # .58 below, 2 SE = .577
        (70.09, 0.5, "reproduced"),
        (71.23, 0.5, "reproduced"),
        (71.24, 0.5, "above"),
    ],
)
def test_a_claim_is_reproduced_within_two_standard_errors_or_three_tenths(
    mean: float, spread: float, status: str
) -> None:
    comparison = compare(claim(), *three(mean, spread))
    assert comparison.differences == ()
    assert comparison.status == status
    assert comparison.ours is not None
    assert comparison.ours.n == 3
    assert comparison.ours.half == pytest.approx(4.302653 * spread / 3**0.5, rel=1e-5)  # t of 2 degrees of freedom
    assert comparison.difference == pytest.approx(mean - 70.66)
    assert comparison.seeds == (0, 1, 2)
    assert comparison.teacher == (72.34, "a" * 64)


def test_one_seed_has_no_interval_and_says_so() -> None:
    assert compare(claim(), record(70.96)).status == "reproduced"
    comparison = compare(claim(), record(70.97))
    assert (comparison.status, comparison.notes) == ("above", ("one seed: no interval",))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"config": {"dataset": {"classes": 20}}, "dataset": {"num_classes": 20}}, "only 20 classes"),
        ({"config": {"dataset": {"per_class": 50}}}, "only 50 images per class"),
        ({"dataset": {"n_val": 5000}}, "5000 training images held out"),
        ({"dataset": {"sha256": "e" * 64}}, "other images under the same name"),
        ({"config": {"dataset": {"flip": False}}}, "flip False instead of True"),
        ({"config": {"protocol": {"epochs": 12}}}, "12 epochs instead of 240"),
        ({"config": {"protocol": {"batch_size": 128}}}, "batch 128 instead of 64"),
        (
            {"config": {"protocol": {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}}}},
            "learning rate 0.1 instead",
        ),
        ({"config": {"protocol": {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.05}}}}, "another optimiser"),
        ({"config": {"protocol": {"schedule": {"kind": "cosine"}}}}, "another schedule"),
        ({"config": {"protocol": {"precision": "bf16-mixed"}}}, "bf16-mixed instead of 32-true"),
        ({"config": {"protocol": {"speed": "full"}}}, "our protocol is not one of this kdbench"),
        ({"config": {"method": {"temperature": 8.0}}}, "temperature 8 instead of 4"),
        ({"config": {"method": {"weights": {"kd": 0.9}}}}, "weights.ce none instead of 0.1"),
        ({"teacher": {"accuracy": 71.33}}, "teacher 71.33 instead of 72.34"),
    ],
)
def test_what_differs_of_ours_is_shown_and_not_judged(overrides: dict[str, Any], reason: str) -> None:
    comparison = compare(claim(), *three(70.66, 0.1, **overrides))
    assert comparison.status == "protocol differs"
    assert any(said.startswith(reason) for said in comparison.differences), comparison.differences
    assert comparison.ours is not None
    assert comparison.difference is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"selection": "best-test"}, "their best test epoch"),
        ({"selection": "median"}, "their median of several runs"),
        ({"selection": "unknown"}, "their unknown selection"),
        ({"epochs": "480"}, "240 epochs instead of 480"),
        ({"epochs": "30+240"}, "240 epochs instead of 30+240"),
        ({"epochs": "unknown"}, "240 epochs instead of an unknown number"),
        ({"protocol": ""}, "their schedule is not on record"),
        ({"kd_term": "yes"}, "they add a KD term"),
        ({"kd_term": "unknown"}, "not stated whether they add a KD term"),
        ({"settings": "weights.ce=1 weights.kd=1"}, "weights.ce 0.1 instead of 1"),
    ],
)
def test_what_differs_of_theirs_is_shown_and_not_judged(changes: dict[str, str], reason: str) -> None:
    comparison = compare(claim(**changes), *three(70.66, 0.1))
    assert comparison.status == "protocol differs"
    assert reason in comparison.differences
    assert comparison.difference is None


def test_a_best_test_claim_shows_our_oracle_beside() -> None:
    comparison = compare(claim(selection="best-test", value="70.96"), *three(70.66, 0.1))  # oracle: .3 above, each
    assert comparison.oracle == pytest.approx(70.96)
    assert comparison.differences == ("their best test epoch",)
    assert comparison.status == "protocol differs"


def test_a_claims_own_settings_are_what_ours_must_equal() -> None:
    ones = claim(settings="weights.ce=1 weights.kd=1")
    assert compare(ones, record(70.7, config={"method": {"weights": {"ce": 1.0, "kd": 1.0}}})).status == "reproduced"
    added = claim(kd_term="yes", settings="weights.ce=1 weights.kd=1")
    assert compare(added, record(70.7, config={"method": {"weights": {"ce": 1.0, "kd": 1.0}}})).status == "reproduced"


@pytest.mark.parametrize(("beta", "equal"), [(2.0, True), (8.0, False)])
def test_a_pairs_tuned_value_is_the_shipped_one(beta: float, equal: bool) -> None:
    """DKD on resnet56 to resnet20 has beta 2 in megvii-research/mdistiller; 8 is its default."""
    weights = {"ce": 1.0, "dkd": {"start": 0.0, "end": 1.0, "until": 20 / 240}}
    settings = {"alpha": 1.0, "beta": beta, "weights": weights}
    comparison = compare(claim(config="dkd", method="DKD"), record(70.66, method="dkd", config={"method": settings}))
    assert comparison.differences == (() if equal else ("beta 8 instead of 2",))


@pytest.mark.parametrize("entry", methods(), ids=lambda entry: entry.name)
def test_the_shipped_settings_are_the_registrys(entry: Entry) -> None:
    settings = {"temperature": None, **entry.settings}  # None: the factory's temperature, where a method has none
    run = record(70.66, method=entry.name, config={"method": settings}, cell={"teacher": "resnet110"})
    assert compare(claim(config=entry.name, teacher="resnet110"), run).differences == ()  # a pair without tuned values


def test_a_third_partys_method_has_no_settings_to_compare() -> None:
    comparison = compare(claim(config="mine"), record(70.66, method="mine"))
    assert comparison.differences == ("no shipped config 'mine' to compare settings with",)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "resnet32"},
        {"student": "resnet20@IRG"},
        {"teacher": "resnet110"},
        {"teacher": "resnet56@elsewhere"},
        {"teacher": "peers"},
        {"dataset": "cifar10"},
        {"dataset": "cifar100/labels=400"},
        {"config": ""},
        {"config": "at"},
        {"metric": "mAP"},
        {"metric": "top5_err"},
    ],
)
def test_other_networks_data_methods_and_metrics_never_join(changes: dict[str, str]) -> None:
    comparison = compare(claim(**changes), *three(70.66, 0.1))
    assert (comparison.status, comparison.cells, comparison.ours) == ("untested", (), None)


def test_claims_without_a_frozen_teacher_join_records_without_one() -> None:
    alone: dict[str, Any] = {"cell": {"teacher": None, "pair": "resnet20"}, "teacher": None}
    records = [record(70.0, method=name, **alone) for name in ("scratch", "dml")]
    supervised = claim(method="CE", config="scratch", teacher="", teacher_value="", student_value="")
    mutual = claim(method="DML", config="dml", teacher="peers", teacher_value="")
    assert [c.cells for c in compare_claims([supervised, mutual], records)] == [(r.cell.id,) for r in records]


def test_an_error_is_compared_as_an_accuracy() -> None:
    error = claim(metric="top1_err", value="29.34", teacher_value="27.66", student_value="30.94")
    comparison = compare(error, *three(70.66, 0.1))
    assert (comparison.status, comparison.differences) == ("reproduced", ())
    assert comparison.difference == pytest.approx(0)


def test_one_number_printed_twice_is_one_claim() -> None:
    twice = [claim(), claim(source="other/kd@7654321 README", value="70.67", reported_by="other/kd")]
    comparison = compare(twice, *three(70.66, 0.1))
    assert (comparison.claim.source, comparison.also) == (twice[0].source, (twice[1],))
    farther = [twice[0], claim(source="other/kd@7654321 README", value="70.68")]
    other_teacher = [twice[0], claim(source="other/kd@7654321 README", teacher_value="73.44")]
    other_rule = [twice[0], claim(source="other/kd@7654321 README", selection="best-test")]
    one_source = [twice[0], claim(notes="the second run", reported_by="KD paper")]
    for claims in (farther, other_teacher, other_rule, one_source):
        assert len(compare_claims(claims, [])) == 2


def test_diverged_seeds_are_counted_and_never_judged() -> None:
    records = [*three(70.66, 0.1), record(0, seed=3, status="diverged")]
    comparison = compare(claim(), *records)
    assert comparison.status == "reproduced"
    assert comparison.notes == ("1 of 4 seeds diverged",)
    assert (len(comparison.cells), comparison.seeds) == (4, (0, 1, 2))
    comparison = compare(claim(), record(0, status="diverged"))
    assert (comparison.status, comparison.ours, comparison.notes) == ("untested", None, ("1 of 1 seeds diverged",))


def test_implausible_results_are_marked() -> None:
    assert compare(claim(), *three(71.66, 0.1)).notes == ()
    (note,) = compare(claim(), *three(71.68, 0.1)).notes
    assert note == "implausible: more than 1 point above the claim"
    few: dict[str, Any] = {
        "config": {"dataset": {"classes": 20}},
        "dataset": {"num_classes": 20},
        "teacher": {"accuracy": 85.0},
    }
    assert compare(claim(), *three(84.0, 0.1, **few)).notes == ()  # fewer classes are easier
    (note,) = compare(claim(value="72.50"), *three(72.65, 0.1)).notes  # teacher 72.34 + .3
    assert note == "implausible: more than 3 sd above its own teacher"
    assert compare(claim(value="72.50"), *three(72.63, 0.1)).notes == ()


def test_of_several_settings_the_closest_is_shown_and_comparable_ones_all() -> None:
    short = {"config": {"protocol": {"epochs": 12}}}
    hot_short = {"config": {"protocol": {"epochs": 12}, "method": {"temperature": 8.0}}}
    comparison = compare(claim(), *three(60.0, 0.1, **short), *three(61.0, 0.1, **hot_short))
    assert (comparison.differences, comparison.others) == (("12 epochs instead of 240",), 1)
    assert comparison.epochs == 12
    other = {"teacher": {"sha256": "b" * 64, "accuracy": 72.0}}
    both = compare_claims([claim()], [*three(70.0, 0.1), *three(70.6, 0.1, **other), *three(60.0, 0.1, **short)])
    assert [(c.status, c.others) for c in both] == [("below", 1), ("reproduced", 1)]
    assert coverage(both)["all"] == {"Claims": 1, "Method and networks here": 1, "below": 1}  # the least flattering


def coverage(comparisons: list[Comparison]) -> dict[str, dict[str, int]]:
    """What of the coverage is not 0."""
    table = coverage_table(comparisons)
    counts = {row[0]: dict(zip(table.header[1:], map(int, row[1:]), strict=True)) for row in table.rows}
    return {name: {key: n for key, n in row.items() if n} for name, row in counts.items()}


# ---- claims with a reproduction --------------------------------------------------------------------------------------


def arm(name: str, *values: float, **overrides: Any) -> dict[str, list[Record]]:
    return {f"group/{name}": [record(value, seed, **overrides) for seed, value in enumerate(values)]}


SCRATCH = arm("scratch", 68.9, 69.0, 69.1, 69.0, 69.0)
TAUGHT = arm("kd", 70.5, 70.7, 70.8, 70.6, 70.6)
OF_KD = {"reproduction": "group/kd", "baseline": "scratch"}


def judged(changes: dict[str, Any], *arms: dict[str, list[Record]]) -> Comparison:
    found = {name: records for each in arms for name, records in each.items()}
    (comparison,) = compare_claims([claim(**OF_KD | changes)], [], found)
    return comparison


def test_a_claim_with_a_reproduction_is_answered_by_its_arm_alone() -> None:
    comparison = judged({}, SCRATCH, TAUGHT)
    assert (comparison.status, comparison.seeds) == ("reproduced", (0, 1, 2, 3, 4))
    assert comparison.verdict is not None
    assert comparison.verdict.claimed_gain == pytest.approx(70.66 - 69.06)  # over its column student_value
    assert comparison.verdict.gain is not None
    assert comparison.verdict.gain.mean == pytest.approx(70.64 - 69.0)
    assert comparison.difference == pytest.approx(-0.02)
    alone = compare_claims([claim(**OF_KD)], three(70.66, 0.1), {})  # other records of its method
    assert [each.status for each in alone] == ["untested"]


def test_the_sources_own_baseline_is_the_claim_of_that_arm() -> None:
    baseline = claim(method="CE", config="scratch", value="70.00", reproduction="group/scratch", student_value="")
    both = compare_claims([claim(**OF_KD), baseline], [], SCRATCH | TAUGHT)
    (taught,) = [each for each in both if each.claim.method == "KD"]
    assert taught.verdict is not None
    assert taught.verdict.claimed_gain == pytest.approx(0.66)


def test_a_gain_that_vanishes_beside_a_control_is_confounded() -> None:
    same = arm("softer", 70.6, 70.8, 70.7, 70.6, 70.5)
    comparison = judged({"control": "softer"}, SCRATCH, TAUGHT, same)
    assert comparison.status == "confounded"
    assert comparison.notes[0] == "the gain over scratch vanishes beside softer"
    assert judged({"control": "softer"}, SCRATCH, TAUGHT).status == "reproduced"  # it was not run


def test_a_claims_rule_is_applied_to_our_curves() -> None:
    best = judged({"selection": "best-test", "value": "70.96"}, SCRATCH, TAUGHT)  # our oracles are .3 above the last
    assert best.status == "reproduced"
    assert best.under_rule is not None
    assert best.ours is not None
    assert (best.under_rule.mean, best.ours.mean) == (pytest.approx(70.94), pytest.approx(70.64))
    chosen = judged({"selection": "validation"}, SCRATCH, TAUGHT)  # no image was held out
    assert "their rule (validation) cannot be applied" in chosen.notes[1]
    assert judged({"selection": "unknown"}, SCRATCH, TAUGHT).notes[1].startswith("their selection: unknown")


def test_diverged_runs_of_an_arm_are_counted() -> None:
    one = {"group/kd": [*TAUGHT["group/kd"], record(0, seed=5, status="diverged")]}
    assert "1 of 6 seeds diverged" in judged({}, SCRATCH, one).notes
    none = judged({}, SCRATCH, arm("kd", 0.0, 0.0, status="diverged"))
    assert (none.status, none.ours) == ("cannot be decided", None)
    assert none.notes == ("no run of ours finished", "2 of 2 seeds diverged")


def test_a_remembered_number_is_no_claim_to_judge() -> None:
    comparison = judged({"provenance": "memory"}, SCRATCH, TAUGHT)
    assert (comparison.status, comparison.verdict, comparison.difference) == ("cannot be decided", None, None)
    assert comparison.notes == ("the number is from memory, to be confirmed",)
    assert claims_tables([comparison]) == []
    old = compare(claim(provenance="memory"), *three(70.66, 0.1))
    assert (old.status, old.differences[0]) == ("protocol differs", "the number is from memory, to be confirmed")


def test_a_number_over_fewer_images_has_their_spread() -> None:
    """Over 1,000 images 70.64 % have 1.96 √(.7064 · .2936 / 1000) = 2.82 points, over the 10,000 of ours none here."""
    exact = arm("kd", 70.64, 70.64, 70.64)
    assert judged({"value": "73.40", "baseline": ""}, exact).status == "below"
    fewer = {"baseline": "", "n_test": "1000", "split": "test[9000:]"}
    assert judged({"value": "73.40"} | fewer, exact).status == "reproduced"
    assert judged({"value": "73.50"} | fewer, exact).status == "below"
    assert judged({"value": "73.40"} | fewer | {"n_test": "10000"}, exact).status == "below"


def test_other_measures_are_read_under_their_own_names() -> None:
    runs = [record(70.0, seed, metrics={"others": {"retrieval_mAP": 50.0 + seed / 10}}) for seed in range(3)]
    other = {"metric": "retrieval_mAP", "value": "50.1", "student_value": "", "teacher_value": ""}
    found = judged(other, {"group/kd": runs})
    assert found.ours is not None
    assert (found.ours.mean, found.status) == (pytest.approx(50.1), "reproduced")
    as_error = {"metric": "top1_err", "value": "29.36", "student_value": "31.0", "teacher_value": ""}
    error = judged(as_error, SCRATCH, TAUGHT)
    assert error.status == "reproduced"
    assert error.verdict is not None
    assert error.verdict.claimed_gain == pytest.approx(1.64)


# ---- the report ------------------------------------------------------------------------------------------------------


def test_tables_hold_the_claims_that_join_records(committed: list[Claim]) -> None:
    comparisons = compare_claims(committed, three(70.5, 0.1))
    (table,) = claims_tables(comparisons)
    assert table.title == "cifar100: resnet56 → resnet20"
    # KD is RepDistiller's alone: SSKD's row is left out, and the others quote it
    assert table.rows == (
        (
            "KD",
            "70.66",
            "HobbitLong/RepDistiller@b84f547 README",
            "last / last",
            "240 / 240",
            "n/a",
            "72.34 / 72.34",
            "70.50 ± 0.25",
            "3",
            "70.80",
            "-0.16",
            "reproduced",
            "",
        ),
    )
    found = coverage(comparisons)
    repdistiller = {"Claims": 177, "Method and networks here": 106, "reproduced": 1, "untested": 176}
    assert found["HobbitLong/RepDistiller"] == repdistiller
    assert found["all"]["Claims"] == len(committed)


def test_what_is_rendered_depends_on_the_content_alone(committed: list[Claim]) -> None:
    records = [*three(70.5, 0.1), *three(60.0, 0.2, config={"protocol": {"epochs": 12}})]
    texts = render_claims(*groups_of(committed, records))
    assert texts == render_claims(*groups_of(committed[::-1], records[::-1]))
    assert list(texts) == ["claims.md", "claims.csv"]
    markdown = texts["claims.md"]
    n = len(committed)
    assert f"{n} claims, {n - 1} of them untested; 3 records join the others." in markdown
    assert "| closest of 2 settings |" in markdown
    assert len(markdown.splitlines()) < 100
    (row,) = csv.DictReader(io.StringIO(texts["claims.csv"]))
    assert (row["kdbench_table"], row["method"], row["status"], row["n"]) == ("claims", "KD", "reproduced", "3")
    assert float(row["difference"]) == pytest.approx(-0.16)


def test_an_empty_store_leaves_all_untested(committed: list[Claim]) -> None:
    texts = render_claims(*groups_of(committed, []))
    n = len(committed)
    assert f"No record joins one of the {n} claims yet." in texts["claims.md"]
    assert texts["claims.md"].count("<summary>Coverage</summary>") == 1  # rows of zeros, folded
    assert len(texts["claims.csv"].splitlines()) == 1
    assert claims_tables(compare_claims(committed, [])) == []


def test_markup_in_a_claim_is_shown_as_it_is() -> None:
    nasty = claim(method="<script>alert(1)</script> | *KD*", source="a|b@1234567 `x`")
    markdown = render_claims(*groups_of([nasty], three(70.66, 0.1)))["claims.md"]
    assert "<script>" not in markdown.replace(r"\<", "")
    assert r"\<script\>alert(1)\</script\> \| \*KD\*" in markdown
    (row,) = (line for line in markdown.splitlines() if "alert" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 14


def test_another_view_of_imagenet_is_another_setting() -> None:
    def told(**dataset: Any) -> list[str]:
        shipped_views = {**shipped.config("dataset", "imagenet")["views"], **dataset.pop("views", {})}
        config = {"name": "imagenet", "views": shipped_views, **dataset}
        return _of_data(make_record("kd", cell={"dataset": "imagenet"}, config={"dataset": config}))

    assert told() == []
    assert told(views={"size": 64}, mix={"mixup": 0.2}) == ["views.size 64 instead of 224", "mixed images"]
    (randaugment,) = told(views={"randaugment": {"ops": 2, "magnitude": 9}})
    assert randaugment.endswith("instead of None")
