from __future__ import annotations

import math

import pytest

from lungml import wording

NAN = (math.nan, math.nan)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.010, "+0.010"), (-0.010, "-0.010"), (0.0, "0.000"), (-0.0001, "0.000"), (0.0001, "0.000"), (math.nan, "none")],
)
def test_a_difference_has_its_sign_and_a_rounded_zero_has_none(value: float, said: str) -> None:
    assert wording.signed(value) == said


def test_a_difference_of_counts() -> None:
    assert [wording.signed(value, 0) for value in (1234, -4, 0.2)] == ["+1,234", "-4", "0"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (33_554_432, "33.6 million"), (1_048_576, "1.0 million"), (999_500, "1.0 million"), (999_499, "999,499"),
        (1024, "1,024"), (99.96, "100"), (99.9, "99.9"), (32, "32.0"), (0.96, "1.0"), (0.53, "0.53"), (0.0333, "0.033"),
        (0, "0.0"), (math.nan, "none"),
    ],
)  # fmt: skip
def test_an_amount_is_said_as_a_person_says_it(value: float, said: str) -> None:
    assert wording.amount(value) == said


def test_shares() -> None:
    assert wording.with_percent(129, 154) == "129 of 154, 84\N{NO-BREAK SPACE}%"
    assert wording.with_percent(0, 0) == "0 of 0"
    assert wording.mean(754, 89) == "8.5"
    assert wording.mean(0, 0) == "none"


def test_bands() -> None:
    assert wording.banded((0.70149, 0.8344)) == "band 0.701 to 0.834"
    assert wording.percent_banded((0.561, 0.914)) == "band 56 to 91\N{NO-BREAK SPACE}%"
    assert wording.signed_edges((-0.01, 0.03)) == "-0.010 to +0.030"
    assert (wording.banded(NAN), wording.percent_banded(NAN)) == ("", "")
    assert (wording.edges(NAN), wording.signed_edges(NAN)) == ("none", "none")


def test_no_p_value_and_no_probability_is_rounded_to_what_it_is_not() -> None:
    assert [wording.p_value(p) for p in (0.0301, 0.0004, 1.0, math.nan)] == ["0.030", "below 0.001", "1.000", "none"]
    said = [wording.probability(p) for p in (0.0, 0.0004, 0.5, 0.9996, 1.0)]
    assert said == ["0.000", "below 0.001", "0.500", "above 0.999", "1.000"]


def test_durations() -> None:
    said = [wording.duration(s) for s in (6.1, 9.96, 43, 59.7, 431, 3599, 7500)]
    assert said == ["6.1 s", "10 s", "43 s", "1 min", "7 min", "1 h 00 min", "2 h 05 min"]
