from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from lungml.calibration import Calibration, Platt, fit_platt
from lungml.metrics import roc_auc


def drawn(slope: float, intercept: float, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that a network said, and outcomes of those that were true: Platt(slope, intercept) of them."""
    rng = np.random.default_rng(1)
    said = expit(rng.normal(0, 2, count))
    return rng.random(count) < expit(slope * logit(said) + intercept), said


def test_the_curve_that_outcomes_were_drawn_by_is_found() -> None:
    curve = fit_platt(*drawn(0.6, -1.5))
    assert curve is not None
    assert (curve.slope, curve.intercept) == (pytest.approx(0.6, abs=0.03), pytest.approx(-1.5, abs=0.05))


def test_a_networks_overconfidence_is_mended_and_its_order_kept() -> None:
    targets, said = drawn(0.5, 0.0)
    curve = fit_platt(targets, said)
    assert curve is not None
    surest = said > 0.95
    assert said[surest].mean() - targets[surest].mean() > 0.1
    assert curve(said)[surest].mean() == pytest.approx(targets[surest].mean(), abs=0.02)
    assert roc_auc(targets, curve(said)) == roc_auc(targets, said)


def test_the_fit_is_the_maximum_of_the_likelihood() -> None:
    targets, said = drawn(1.3, 0.4, 60)
    curve = fit_platt(targets, said)
    assert curve is not None
    positives, negatives = int(targets.sum()), int((~targets).sum())
    wanted = np.where(targets, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(slope: float, intercept: float) -> float:
        p = expit(slope * logit(said) + intercept)
        return float(-(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).sum())

    best = loss(curve.slope, curve.intercept)
    for step in (0.05, -0.05):
        assert loss(curve.slope + step, curve.intercept) > best
        assert loss(curve.slope, curve.intercept + step) > best


@pytest.mark.parametrize(("targets", "why"), [([True] * 4 + [False] * 30, "few"), ([False] * 30, "one class")])
def test_too_few_outcomes_fit_nothing(targets: list[bool], why: str) -> None:
    assert fit_platt(targets, np.linspace(0.1, 0.9, len(targets))) is None, why


def test_a_falling_curve_is_no_calibration() -> None:
    said = np.linspace(0.05, 0.95, 40)
    assert fit_platt(said < 0.5, said) is None


def test_saturated_and_separable_probabilities_give_finite_curves() -> None:
    curve = fit_platt([True] * 20 + [False] * 20, [1.0] * 20 + [0.0] * 20)
    assert curve is not None
    assert curve([1.0, 0.0])[0] > 0.9
    assert np.isfinite(curve([0.0, 1.0])).all()


@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.1, 5), st.floats(-5, 5))
def test_what_was_calibrated_can_be_undone(prob: float, slope: float, intercept: float) -> None:
    curve = Platt(slope=slope, intercept=intercept)
    (shown,) = curve([prob])
    if 1e-9 < shown < 1 - 1e-9:
        assert curve.undo([shown])[0] == pytest.approx(prob, rel=1e-3, abs=1e-6)


def test_a_whole_list_is_undone_and_what_was_not_asked_stays_unknown() -> None:
    curve = Platt(slope=2.0, intercept=-1.0)
    said = np.array([[0.1, 0.5], [0.9, math.nan]])
    np.testing.assert_allclose(curve.undo(curve(said)), said, rtol=1e-9)
    assert np.isfinite(curve.undo([0.0, 1.0])).all()


def test_what_was_not_asked_stays_unknown() -> None:
    shown = Calibration(malignancy=Platt(slope=2, intercept=1)).malignancy_probs(np.array([math.nan, 0.5]))
    assert math.isnan(shown[0])
    assert shown[1] == pytest.approx(expit(1))


def test_a_calibration_survives_json() -> None:
    calibration = Calibration(nodule=Platt(slope=0.7, intercept=-1))
    again = Calibration.from_dict(json.loads(json.dumps(calibration.as_dict())))
    assert again == calibration
    assert (again.method, Calibration().method) == ("platt", "none")
    # The one name speaks for both; each of the two has its own.
    assert again.methods == {"nodule": "platt", "malignancy": "none"}
    assert Calibration(malignancy=Platt(slope=1, intercept=0)).methods == {"nodule": "none", "malignancy": "platt"}
    assert Calibration.from_dict(None) == Calibration.from_dict(Calibration().as_dict()) == Calibration()


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"method": "isotonic"}, "isotonic"), ({"method": "platt", "nodule": {"slope": -1, "intercept": 0}}, "rising")],
)
def test_an_unknown_or_falling_calibration_is_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Calibration.from_dict(fields)


@pytest.mark.parametrize("probs", [[0.5, math.nan], [0.5, 1.1]])
def test_what_is_no_probability_fits_nothing(probs: list[float]) -> None:
    with pytest.raises(ValueError, match="not all in"):
        fit_platt([True, False], probs)
