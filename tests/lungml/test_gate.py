"""Challengers that a gate must let through and those that it must not, on hand-made resamples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from lungml.candidacy import Candidacy, Member, find_flaws
from lungml.compare import Sampled, Statistic, build_system, draw_resamples, sample
from lungml.gate import Check, Decision, GateError, GateSettings, decide
from lungml.score import ScoredFinding

SERIES = tuple(f"1.{number}" for number in range(50))
EVEN = np.linspace(-1, 1, 401)  # of a band: percentile 2.5 is -0.95


def spread(observed: float, half_width: float = 0.0) -> Sampled:
    return Sampled(observed=observed, resampled=observed + half_width * EVEN)


STANDING: Mapping[Statistic, Sampled] = {
    "malignant_sensitivity": spread(0.6),
    "cpm": spread(0.6),
    "malignancy_auc": spread(0.9),
    "diameter_auc": spread(0.88),
    "malignant_false_positives": spread(100),
}


def bundle(uri: str = "models:/luna/2", **changes: Any) -> Candidacy:
    """A candidacy; what is no field of it is a score, moved by (difference, half width of its band)."""
    fields = {name: changes.pop(name) for name in list(changes) if name in Candidacy.__dataclass_fields__}
    samples = dict(STANDING)
    for name, (difference, half_width) in changes.items():
        samples[name] = spread(STANDING[name].observed + difference, half_width)  # type: ignore[index]
    whole = {"origin": "real", "scans": "real", "samples": samples, "series_uids": SERIES, "malignant": 40}
    return Candidacy(uri=uri, **{**whole, **fields})


CHAMPION = bundle("models:/luna/1")
BETTER = {"cpm": (0.1, 0.05)}  # whatever else is so, there is something to gain


def check(decision: Decision, name: str) -> Check:
    return next(one for one in decision.checks if one.name == name)


def failed(decision: Decision) -> list[str]:
    return [one.name for one in decision.checks if not one.passed]


# --- against a champion ---


def test_a_better_bundle_is_promoted_and_the_reasons_say_by_how_much() -> None:
    decision = decide(bundle(cpm=(0.1, 0.05)), CHAMPION)
    assert decision.promoted
    assert (decision.alias, decision.champion) == ("champion", "models:/luna/1")
    assert "CPM 0.700 against 0.600, +0.100 (95 % band +0.052 to +0.147)" in decision.reasons[1]
    assert (len(decision.reasons), decision.reasons[-1]) == (5, "better beyond chance: CPM")
    assert check(decision, "cpm").numbers["difference"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "change"),
    [("cpm", (-0.1, 0.05)), ("malignancy_auc", (-0.02, 0.01)), ("malignant_sensitivity", (-0.2, 0.01))],
)
def test_a_worse_bundle_is_refused_whatever_else_it_gains(name: str, change: tuple[float, float]) -> None:
    gains = {"cpm": (0.1, 0.05), "malignancy_auc": (0.05, 0.01), "malignant_sensitivity": (0.1, 0.05)}
    decision = decide(bundle(**{**gains, name: change}), CHAMPION)
    assert not decision.promoted
    assert failed(decision) == [name]
    (reason,) = decision.reasons
    assert reason.endswith("worse beyond chance" if name != "malignant_sensitivity" else "the margin of 0.05")


def test_a_promotion_whose_alias_did_not_move_is_a_refusal() -> None:
    decision = decide(bundle(cpm=(0.1, 0.05)), CHAMPION)
    left = decision.unmoved("the database is locked")
    words = "could not become @champion: the database is locked"
    assert (left.promoted, left.reasons, failed(left)) == (False, (words,), ["moved"])
    assert left.words == f"models:/luna/2 does not become @champion: {words}"
    assert left.checks[:-1] == decision.checks
    assert (left.challenger, left.champion) == (decision.challenger, decision.champion)


def test_a_tie_is_refused() -> None:
    decision = decide(bundle(), CHAMPION)
    assert not decision.promoted
    assert failed(decision) == ["gain"]
    assert "nothing is gained" in decision.reasons[0]


def test_a_gain_within_chance_is_none_unless_the_settings_ask_for_no_proof() -> None:
    lucky = bundle(cpm=(0.02, 0.1))
    assert failed(decide(lucky, CHAMPION)) == ["gain"]
    assert decide(lucky, CHAMPION, GateSettings(proven_gain=False)).promoted
    assert failed(decide(bundle(), CHAMPION, GateSettings(proven_gain=False))) == ["gain"]  # a tie stays one


@pytest.mark.parametrize(
    ("difference", "half_width", "passed", "words"),
    [
        (0.0, 0.0, True, "within the margin of 0.05"),
        (-0.03, 0.01, True, "within the margin"),  # down to -0.0395
        (0.0, 0.0526, True, "within the margin"),  # down to -0.04997
        (0.0, 0.0527, False, "40 malignant nodules are too few to rule that out, judge on more scans"),
        (-0.06, 0.0, False, "lower by more than the margin of 0.05"),
        (0.3, 0.4, False, "too few to rule that out"),  # better as observed, but who knows
    ],
)
def test_malignant_sensitivity_must_be_shown_not_to_be_inferior(
    difference: float, half_width: float, passed: bool, words: str
) -> None:
    decision = decide(bundle(malignant_sensitivity=(difference, half_width), **BETTER), CHAMPION)
    assert decision.promoted == passed
    assert words in check(decision, "malignant_sensitivity").words


def test_the_margin_is_a_setting() -> None:
    wide = bundle(malignant_sensitivity=(0, 0.1), **BETTER)
    assert not decide(wide, CHAMPION).promoted
    assert decide(wide, CHAMPION, GateSettings(margin=0.1)).promoted


def test_one_of_cpm_and_auc_must_not_be_lower_even_by_chance() -> None:
    gain = {"malignant_sensitivity": (0.2, 0.1)}
    assert decide(bundle(cpm=(-0.01, 0.1), **gain), CHAMPION).promoted
    decision = decide(bundle(cpm=(-0.01, 0.1), malignancy_auc=(-0.01, 0.1), **gain), CHAMPION)
    assert failed(decision) == ["one_not_lower"]


def test_malignant_sensitivity_that_false_findings_buy_is_no_gain() -> None:
    # The same models with a lower malignancy threshold: neither CPM nor AUC moves.
    gain = {"malignant_sensitivity": (0.2, 0.1)}
    assert decide(bundle(**gain), CHAMPION).promoted
    assert decide(bundle(malignant_false_positives=(10, 20), **gain), CHAMPION).promoted  # within chance
    decision = decide(bundle(malignant_false_positives=(60, 20), **gain), CHAMPION)
    assert failed(decision) == ["gain"]
    assert "bought with false malignant findings (false malignant findings 160 against 100, +60" in decision.reasons[0]
    assert decide(bundle(malignant_false_positives=(60, 20), **gain, **BETTER), CHAMPION).promoted


# --- facts that refuse ---


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"flaws": ("its nodule model models:/m-1 is gone",)}, "whole", "its nodule model models:/m-1 is gone"),
        ({"leaks": ("it learned from 2 of these scans",)}, "unseen", "learned from 2"),
        ({"scans": "phantom"}, "scans", "judged on 50 synthetic scans: a champion is judged on real ones"),
        ({"set_aside": 2}, "set_aside", "2 of 50 test scans set aside (4.0%; at most 2.0%)"),
        ({"malignant": 9}, "malignant", "9 malignant test nodules are too few to tell anything; at least 10"),
        ({"series_uids": ()}, "scans", "judged on no scan"),
        ({"series_uids": SERIES[::-1]}, "comparable", "in another order"),
        ({"series_uids": (*SERIES[:-1], "1.77")}, "comparable", "2 scans were judged by one alone"),
        ({"uri": "models:/luna/1"}, "comparable", "it is @champion already"),
    ],
)
def test_no_score_outweighs_a_fact(change: dict[str, Any], name: str, words: str) -> None:
    assert decide(bundle(**BETTER), CHAMPION).promoted
    decision = decide(bundle(**change, **BETTER), CHAMPION)
    assert not decision.promoted
    assert name in failed(decision)
    assert any(words in reason for reason in decision.reasons), decision.reasons


def test_one_scan_in_fifty_may_be_set_aside() -> None:
    assert decide(bundle(set_aside=1, **BETTER), CHAMPION).promoted
    assert not decide(bundle(set_aside=1, **BETTER), CHAMPION, GateSettings(max_set_aside_share=0.01)).promoted


@pytest.mark.parametrize("name", ["malignant_sensitivity", "cpm", "malignancy_auc", "diameter_auc"])
@pytest.mark.parametrize("how", ["absent", "NaN", "without a band", "half a band", "too few scans"])
def test_a_missing_metric_is_refused(name: Statistic, how: str) -> None:
    good = bundle(**BETTER)
    whole = good.samples[name]
    holes = np.where(np.arange(len(EVEN)) % 3 > 0, np.nan, whole.resampled)  # a third is defined
    missing: dict[str, Sampled] = {
        "NaN": replace(whole, observed=math.nan),
        "without a band": replace(whole, resampled=np.full_like(EVEN, np.nan)),
        "half a band": replace(whole, resampled=holes),
        "too few scans": replace(whole, scans=2),
    }
    samples = {key: value for key, value in good.samples.items() if key != name}
    if how in missing:
        samples[name] = missing[how]
    decision = decide(replace(good, samples=samples), CHAMPION)
    assert failed(decision) == ["metrics"]
    tells = how not in ("absent", "NaN")
    assert ("these scans say too little of " if tells else "models:/luna/2 has no ") in decision.reasons[0]
    # The champion's is as necessary, and so it is without a champion.
    assert failed(decide(good, replace(CHAMPION, samples=samples))) == ["champion_metrics"]
    assert "metrics" in failed(decide(replace(good, samples=samples), None))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": {}, "series_uids": ()}, "models:/luna/1 was not scored on these scans"),
        ({"origin": "phantom"}, "models:/luna/1 is a bundle of synthetic scans"),
    ],
)
def test_a_champion_that_cannot_be_compared_stays(change: dict[str, Any], words: str) -> None:
    decision = decide(bundle(**BETTER), replace(CHAMPION, **change))
    assert not decision.promoted
    assert words in decision.reasons[0]


def test_a_champion_that_saw_the_scans_is_only_harder_to_beat() -> None:
    flattered = replace(CHAMPION, leaks=("it learned from 3 of these scans",))
    words = "the score of models:/luna/1 may flatter it: it learned from 3 of these scans"
    for challenger, promoted in ((bundle(**BETTER), True), (bundle(), False)):
        decision = decide(challenger, flattered)
        assert (decision.promoted, decision.reasons[-1]) == (promoted, words)


def test_other_resamples_are_no_pairs() -> None:
    fewer = {name: replace(one, resampled=one.resampled[:100]) for name, one in CHAMPION.samples.items()}
    decision = decide(bundle(**BETTER), replace(CHAMPION, samples=fewer))
    assert decision.reasons == ("models:/luna/1 was resampled 100 times, the challenger 401",)


# --- without a champion ---


def test_a_first_champion_beats_the_diameter_and_the_floors() -> None:
    decision = decide(bundle(), None)
    assert decision.promoted
    assert (decision.champion, decision.alias) == (None, "champion")
    assert decision.reasons[0] == "malignant sensitivity 0.600 reaches the floor of 0.5"
    assert "malignancy AUC 0.900 against 0.880 of the diameter alone, +0.020" in decision.reasons[-1]
    within_chance = decide(bundle(malignancy_auc=(0.0, 0.05)), None)
    assert within_chance.promoted
    assert within_chance.reasons[-1].endswith("better, which may be chance")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"cpm": (-0.11, 0)}, ["least_cpm"]),
        ({"malignant_sensitivity": (-0.11, 0)}, ["least_malignant_sensitivity"]),
        ({"malignancy_auc": (-0.03, 0)}, ["over_diameter"]),
        ({"malignancy_auc": (-0.02, 0)}, ["over_diameter"]),  # as good as the diameter is not better
        ({"malignancy_auc": (-0.15, 0)}, ["least_malignancy_auc", "over_diameter"]),
        ({"malignancy_auc": (-0.15, 0), "diameter_auc": (-0.3, 0)}, ["least_malignancy_auc"]),
    ],
)
def test_one_that_misses_a_floor_does_not_become_the_first(
    change: dict[str, tuple[float, float]], names: list[str]
) -> None:
    decision = decide(bundle(**change), None)
    assert not decision.promoted
    assert failed(decision) == names


def test_the_floors_are_settings() -> None:
    assert not decide(bundle(), None, GateSettings(least_cpm=0.7)).promoted
    assert decide(bundle(cpm=(-0.3, 0)), None, GateSettings(least_cpm=0.3)).promoted


@pytest.mark.parametrize(
    "wrong", [{"margin": -0.1}, {"margin": math.nan}, {"least_cpm": 1.5}, {"max_set_aside_share": 2}]
)
def test_settings_that_are_no_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(GateError, match=f"the gate's {next(iter(wrong))} is .*from 0 to 1") as caught:
        GateSettings(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(GateError, match="fewest_malignant is 0"):
        GateSettings(fewest_malignant=0)


# --- synthetic scans ---


def phantom(uri: str = "models:/luna/2", **changes: Any) -> Candidacy:
    return bundle(uri, **{"origin": "phantom", "scans": "phantom", **changes})


def test_the_first_phantom_bundle_becomes_the_demo_and_is_told_what_it_lacks() -> None:
    weak = phantom(cpm=(-0.5, 0), malignancy_auc=(-0.5, 0), malignant=3, set_aside=5)
    decision = decide(weak, None)
    assert (decision.promoted, decision.alias) == (True, "demo")
    assert decision.reasons[0] == "the first bundle of synthetic scans becomes @demo as it is"
    assert len(decision.reasons) == 1 + len(failed(decision)) == 6
    assert "with one to beat it would have failed: CPM 0.100 is below the floor of 0.5" in decision.reasons


@pytest.mark.parametrize("change", [{"flaws": ("mixed",)}, {"leaks": ("seen",)}, {"series_uids": ()}])
def test_a_mixed_or_leaking_one_does_not(change: dict[str, Any]) -> None:
    decision = decide(phantom(**change), None)
    assert (decision.promoted, decision.alias) == (False, "demo")


def test_a_demo_is_replaced_by_a_better_one_alone() -> None:
    demo = phantom("models:/luna/1")
    assert decide(phantom(**BETTER), demo).promoted
    assert decide(phantom(**BETTER), demo).alias == "demo"
    assert not decide(phantom(), demo).promoted


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_a_phantom_bundle_is_never_champion(champion: Candidacy | None) -> None:
    decision = decide(phantom(malignant_sensitivity=(0.4, 0), **BETTER), champion)
    assert decision.alias == "demo"
    assert decision.promoted == (champion is None)


# --- what is kept ---


def test_a_decision_is_json_and_one_line() -> None:
    decision = decide(bundle(cpm=(math.nan, 0)), CHAMPION)
    said = json.loads(json.dumps(decision.as_dict(), allow_nan=False))
    assert (said["promoted"], said["alias"], said["challenger"]) == (False, "champion", "models:/luna/2")
    assert said["checks"][3]["numbers"] == {"set_aside": 0, "scans": 50, "share": 0.0, "limit": 0.02}
    assert decision.words == "models:/luna/2 does not become @champion: models:/luna/2 has no CPM on these scans"


# --- mixed bundles ---

VOXELS = {"crop_shape": (32, 48, 48), "spacing_mm": None}
UNET = Member(member="segmentation", uri="models:/m-s", origin="real", inputs={"context_slices": 3})
NODULE = Member(member="nodule", uri="models:/m-n", origin="real", inputs=VOXELS)
MALIGNANCY = Member(member="malignancy", uri="models:/m-m", origin="real", inputs=VOXELS)


def clipped(*ranges: Sequence[int]) -> list[Member]:
    return [replace(one, inputs={"hu_range": value}) for one, value in zip((NODULE, MALIGNANCY), ranges)]


def test_models_of_one_kind_are_not_mixed() -> None:
    assert find_flaws("real", [UNET, NODULE, MALIGNANCY]) == ()
    listed = replace(MALIGNANCY, inputs={"crop_shape": [32, 48, 48], "spacing_mm": None})  # as JSON has it
    unknown = replace(UNET, origin=None, uri="models:/m-t")
    assert find_flaws("real", [UNET, unknown, NODULE, listed]) == ()


@pytest.mark.parametrize(
    ("origin", "members", "words"),
    [
        ("real", [UNET, replace(NODULE, origin="phantom"), MALIGNANCY], "nodule model models:/m-n learned from synth"),
        ("phantom", [replace(UNET, origin="phantom"), MALIGNANCY], "malignancy model models:/m-m learned from real"),
        ("real", [UNET, replace(UNET, inputs={"context_slices": 1}), NODULE], "disagree about context_slices"),
        ("real", [UNET, NODULE, replace(MALIGNANCY, inputs={"crop_shape": (32, 32, 32)})], "disagree about crop_shape"),
        ("real", [NODULE, replace(MALIGNANCY, inputs={"spacing_mm": [1, 1, 1]})], "has (1, 1, 1)"),
        ("real", [*clipped([-1000, 1000], (-1000, 400))],
         "disagree about hu_range: nodule models:/m-n has (-1000, 1000), malignancy models:/m-m has (-1000, 400)"),
    ],
)  # fmt: skip
def test_a_mixed_bundle_is_told_in_one_line(origin: Any, members: Sequence[Member], words: str) -> None:
    (flaw,) = find_flaws(origin, members)
    assert words in flaw


# --- real bootstraps ---


@dataclass(frozen=True)
class Nodule:
    center_xyz: tuple[float, float, float]
    diameter_mm: float
    malignant: bool


def bootstrapped(uri: str, flagged: int, found: int) -> Candidacy:
    """Of 50 scans with a malignant and a benign nodule each: in so many both are found, in so many it is flagged."""
    truth = {
        uid: (Nodule((0, 0, 0), 8 + place % 5, True), Nodule((90, 0, 0), 7 + place % 5, False))
        for place, uid in enumerate(SERIES)
    }
    findings = {
        uid: [
            ScoredFinding(center_xyz=(0, 0, 0), prob_nodule=0.9, prob_malignant=0.8 if place < flagged else 0.2),
            ScoredFinding(center_xyz=(90, 0, 0), prob_nodule=0.8, prob_malignant=0.1),
        ]
        if place < found
        else []
        for place, uid in enumerate(SERIES)
    }
    judged = {uid: (0.8 if place < 45 else 0.05, 0.1) for place, uid in enumerate(SERIES)}
    system = build_system(findings, truth, {}, SERIES, prob_malignant=judged)
    samples = sample(system, draw_resamples(len(SERIES), 500, np.random.default_rng(0)))
    return bundle(uri, samples=samples, malignant=50)


def test_bootstrapped_systems_pass_or_fail_as_they_should() -> None:
    champion = bootstrapped("models:/luna/1", flagged=30, found=40)
    assert decide(champion, None).promoted
    better = decide(bootstrapped("models:/luna/2", flagged=45, found=48), champion)
    assert better.promoted
    assert better.reasons[-1] == "better beyond chance: CPM, malignant sensitivity"
    worse = decide(bootstrapped("models:/luna/2", flagged=20, found=48), champion)
    assert failed(worse) == ["malignant_sensitivity"]
    assert failed(decide(bootstrapped("models:/luna/2", flagged=30, found=40), champion)) == ["gain"]
    # One flagged nodule fewer in 50: -0.02, and resamples in which it counts four times.
    one_less = decide(bootstrapped("models:/luna/2", flagged=29, found=48), champion)
    assert failed(one_less) == ["malignant_sensitivity"]
    assert "50 malignant nodules are too few" in one_less.reasons[0]
