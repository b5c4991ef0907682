"""Numbers and names as people read them."""

from __future__ import annotations

import pytest

from kdbench.text import fixed, full, has_control, inert, one_line, visible


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (40.625, 2, "40.62"),  # ties go to the even digit, whatever the binary fraction is beside
        (40.635, 2, "40.64"),
        (2.675, 2, "2.68"),
        (2.665, 2, "2.66"),
        (0.5, 0, "0"),
        (1.5, 0, "2"),
        (40.62500000000001, 2, "40.62"),  # the sixteenth digit is that of the numerical library
        (3.3150001, 2, "3.32"),  # and the seventh is a digit
        (-0.004, 2, "0.00"),
        (-0.0, 1, "0.0"),
        (1e300, 0, "1" + 300 * "0"),
        (1e-300, 2, "0.00"),
    ],
)
def test_one_rule_of_rounding(value: float, digits: int, expected: str) -> None:
    assert fixed(value, digits) == expected


def test_signs_and_scales() -> None:
    assert [fixed(value, 2, signed=True) for value in (1.0, -1.0, -0.001, 0.0)] == ["+1.00", "-1.00", "+0.00", "+0.00"]
    assert fixed(0.10645, 1, scale=100) == "10.6"
    assert fixed(-0.0005, 1, scale=100) == "0.0"  # -0.05: a tie


def test_what_is_rounded_is_what_programs_get() -> None:
    for value in (2 / 3, 40.62500000000001, 1.005, 1e-7, 123456.78949999):
        assert fixed(value, 2) == fixed(float(full(value)), 2)


def test_what_acts_is_written_out() -> None:
    assert visible("a\x1b[31mb\x07\x00") == r"a\x1b[31mb\x07\x00"
    assert visible("a\u202eb\u2066c\u200bd\ufeffe\u2028f") == r"a\u202eb\u2066c\u200bd\ufeffe\u2028f"
    assert visible("a\nb\tc", keep="\n") == "a\nb\\tc"
    for name in ("naïve Ångström", "中文", "می\u200cخواهم", "10\u00a0%", "→ ± ½", ""):
        assert visible(name) == name
    assert one_line(" a\n\tb\r\x1b ") == r"a b \x1b"
    assert [has_control(text) for text in ("a\x7f", "a\x85", "a\nb", "a b", "\u202e")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "\uff20"])
def test_no_text_is_a_formula(start: str) -> None:
    assert inert(f"{start}1+1") == f"'{start}1+1"
    assert inert(f"a{start}1") == f"a{start}1"
    assert inert(f"\t{start}1").startswith(r"\t")
