"""What a method's settings may be: every one of the registry's, inside the bench and outside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from kdbench.construct import construct, method_identity
from kdbench.errors import UserError
from kdbench.method import Method, Ramp
from kdbench.protocol import Protocol
from kdbench.registry import methods
from methods.controls.scratch import Scratch
from methods.data_free.dafl import DAFL
from methods.intermediate.at import AT
from methods.intermediate.fitnet import FitNet
from methods.intermediate.vid import VID
from methods.logits.dkd import DKD
from methods.logits.kd import KD
from methods.logits.label_smoothing import LabelSmoothing
from methods.logits.logits_mse import LogitsMSE
from methods.online.dml import DML

ENTRIES = {entry.name: entry for entry in methods()}
NUMBERS = [
    (name, key)
    for name, entry in ENTRIES.items()
    for key, value in entry.settings.items()
    if isinstance(value, (int, float)) and not isinstance(value, bool)
]
TEMPERATURES = [name for name, key in NUMBERS if key == "temperature"]


def build(name: str, **changes: Any) -> Method:
    """As the bench does."""
    return construct(name, ENTRIES[name].cls, {**ENTRIES[name].settings, **changes}, Protocol())


def refused(name: str, key: str, value: Any) -> str:
    """The sentence of the bench; that of the class alone names the same setting."""
    with pytest.raises(UserError) as inside:
        build(name, **{key: value})
    with pytest.raises(UserError) as outside:
        ENTRIES[name].cls(**{key: value})
    assert str(inside.value).startswith(f"method.{name}.{key}={value!r}: ")
    assert str(outside.value).startswith(f"{ENTRIES[name].cls.__name__}: {key}={value!r}: ")
    return str(inside.value)


def test_some_methods_have_a_temperature() -> None:
    assert {"kd", "dkd", "dml", "byot", "fitnet"} <= set(TEMPERATURES)


@pytest.mark.parametrize("name", TEMPERATURES)
def test_a_temperature_is_above_zero(name: str) -> None:
    for value in (0, 0.0, -1, -4.0):
        assert refused(name, "temperature", value).endswith("input should be greater than 0.")
    for value in (1e-3, 1, 1e6):
        build(name, temperature=value)


@pytest.mark.parametrize(("name", "key"), NUMBERS, ids=lambda part: part)
def test_a_number_is_a_finite_number(name: str, key: str) -> None:
    for value in (math.nan, math.inf, -math.inf, True, "4", "abc", None, [1]):
        refused(name, key, value)


@pytest.mark.parametrize(
    ("cls", "key", "good", "bad"),
    [
        (LabelSmoothing, "epsilon", (0, 0.99), (-0.5, 1, 1.5)),
        (FitNet, "hint_share", (0, 0.5, 1), (-0.1, 1.1, 2)),
        (FitNet, "use_relu", (True, False), (1, 0, "yes")),
        (DKD, "alpha", (0, 2), (-1,)),
        (DKD, "beta", (0, 2.5), (-1,)),
        (DAFL, "noise", (1, 1000), (0, -1, 2.5, 10**9)),
        (DAFL, "generator_lr", (1e-3,), (0, -0.1)),
        (DAFL, "logarithm", ("ln",), ("log2", 10)),
        (DML, "peers", (2, 3), (1, 0, 2.5, 10**6)),
        (DML, "variant", ("simultaneous",), ("both", 1)),
        (LogitsMSE, "variant", ("mean",), ("max",)),
        (VID, "initial_variance", (1e-4, 5, 1e3), (0, -1, 1e-5)),
        (VID, "middle", (1, 64, None), (0, -3, 1.5, 10**9)),
        (AT, "p", (1, 2, 4.5), (0, 0.5, -2)),
    ],
)
def test_bounds(cls: type[Method], key: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    for value in good:
        cls(**{key: value})
    for value in bad:
        with pytest.raises(UserError, match=rf"^{cls.__name__}: {key}={value!r}: input should be "):
            cls(**{key: value})


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, True, "1", None, [1]])
def test_a_weight_is_zero_or_more(weight: Any) -> None:
    with pytest.raises(UserError, match=r"^method\.kd\.weights\.kd=.*: input should be "):
        build("kd", weights={"ce": 1.0, "kd": weight})
    with pytest.raises(UserError, match=r"^KD: weights\.kd=.*: input should be "):
        KD(weights={"ce": 1.0, "kd": weight})


@pytest.mark.parametrize(
    ("ramp", "where"),
    [
        ({"start": 1, "end": 0, "until": 2}, "until=2"),
        ({"start": 1, "end": 0, "until": 0}, "until=0"),
        ({"start": 1, "end": math.nan}, "end=nan"),
        ({"start": -1, "end": 0}, "start=-1"),
        ({"start": True, "end": 0}, "start=True"),
        ({"start": 1, "end": 0, "untill": 0.5}, "untill=0.5"),
        ({"start": 1}, "end'"),
    ],
)
def test_a_ramp_lies_between_weights(ramp: Mapping[str, Any], where: str) -> None:
    with pytest.raises(UserError, match=rf"method\.kd\.weights\.kd\.{where}"):
        build("kd", weights={"ce": 1.0, "kd": ramp})


def test_ramps_and_numbers_are_weights() -> None:
    method = KD(weights={"ce": 0, "kd": {"start": 0, "end": 2, "until": 0.5}})
    assert method._weights == {"ce": Ramp(0, 0), "kd": Ramp(0, 2, 0.5)}


def test_fitnet_in_one_stage_has_no_kd_term() -> None:
    settings = ENTRIES["fitnet"].settings
    with pytest.raises(UserError, match=r"terms are hint, ce: drop it \(~method\.fitnet\.weights\.kd\)\.$"):
        build("fitnet", hint_share=0)
    left = {name: weight for name, weight in settings["weights"].items() if name != "kd"}
    assert build("fitnet", hint_share=0, weights=left).terms == ("hint", "ce")
    with pytest.raises(UserError, match=r"give it one \(\+method\.kd\.weights\.kd=1\.0\)\.$"):
        build("kd", weights={"ce": 1.0})


def test_a_setting_that_came_later_is_no_other_cell_where_it_has_its_old_value() -> None:
    assert method_identity(AT, {"p": 2, "weights": {}}) == {"weights": {}}
    assert method_identity(AT, {"p": 4.0}) == {"p": 4.0}
    assert method_identity(FitNet, {"use_relu": True}) == {}
    assert method_identity(FitNet, {"use_relu": 1}) == {"use_relu": 1}  # which is refused, not dropped
    assert method_identity(VID, {"middle": None}) == {}


class Mine(Method):
    """A user's own, with plain annotations, some of which only a type checker can read."""

    leaf, paper, title = "controls", "", "Mine"
    needs = frozenset({"labels"})

    def __init__(self, rate: float, sizes: tuple[int, ...] = (1,), flag: bool = False, anything=None, **kwargs: Any):  # type: ignore[no-untyped-def]
        super().__init__(**kwargs)
        self.rate, self.sizes, self.flag, self.anything = rate, sizes, flag, anything


def test_annotations_of_anyones_method_are_checked() -> None:
    mine = construct("mine", Mine, {"rate": 2, "sizes": [3, 4], "anything": "x", "weights": {"ce": 1}}, Protocol())
    assert isinstance(mine, Mine)
    assert (mine.rate, mine.sizes, mine.flag, mine.anything) == (2.0, (3, 4), False, "x")
    for key, value in (("rate", True), ("rate", "2"), ("rate", math.nan), ("sizes", [True]), ("flag", 1)):
        with pytest.raises(UserError, match=rf"^method\.mine\.{key}.*: input should be "):
            construct("mine", Mine, {"rate": 2, key: value}, Protocol())
    assert Mine(1).rate == 1.0
    with pytest.raises(UserError, match=r"^Mine: rate=True: "):
        Mine(True)
    with pytest.raises(TypeError, match="rate"):
        Mine()  # type: ignore[call-arg]


def test_networks_are_no_numbers() -> None:
    with pytest.raises(UserError, match=r"^Scratch: student=3: input should be an instance of Module\.$"):
        Scratch(student=3)  # type: ignore[arg-type]
