from __future__ import annotations

import math

import numpy as np
import pytest

from lungml import wording
from lungml.compare import Sampled

BAND = np.linspace(0, 1, 9)
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


def test_no_share_is_rounded_to_all_or_nothing_that_it_is_not() -> None:
    said = [wording.percent(*share) for share in ((1185, 1186), (1186, 1186), (1, 400), (0, 400), (2, 400), (98, 99))]
    space = "\N{NO-BREAK SPACE}%"
    assert said == [words + space for words in ("over 99", "100", "under 1", "0", "under 1", "99")]
    assert wording.percent_banded((0.9, 0.998)) == f"band 90 to over 99{space}"
    assert wording.percent_banded((0.0, 1.0)) == f"band 0 to 100{space}"


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


def test_resamples_that_are_left_out_are_told_of() -> None:
    words = "Resamples on which a score is not defined are left out of its band, at most 3 of 2,000."
    some, all_of_them = (Sampled(observed=0.5, resampled=np.where(np.arange(9) < n, np.nan, BAND)) for n in (3, 9))
    none = Sampled(observed=0.5, resampled=BAND)
    assert wording.left_out([none, some, all_of_them], 2000) == words  # one without a band is not told of
    assert wording.left_out([none, all_of_them], 2000) == wording.left_out([], 2000) == ""


def test_a_commit_keeps_that_files_differed() -> None:
    digits = "0123456789abcdef"
    said = [wording.commit(code) for code in (digits, f"{digits}-dirty", "")]
    assert said == ["0123456789ab", "0123456789ab-dirty", "unknown"]
