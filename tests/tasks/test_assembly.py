"""Which models form the bundle, and how its probabilities are calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungml import store
from lungml.annotated import Annotated, write_annotated
from lungml.answers import Answers, write_answers
from lungml.calibration import Calibration, fit_platt
from lungml.candidates import Candidates
from lungml.geometry import Grid, xyz_to_irc
from lungml.luna import Excluded, Nodule
from lungml.marked import Marked
from lungml.scorecard import SegmentedScan
from tasks.assembly import calibrate, choose_malignancy
from tasks.comparison import EvaluatedScan
from tasks.finding import FoundScan, NamedBundle
from tasks.pipeline import TrainedModel


def model_of(name: str, auc: float) -> TrainedModel:
    return TrainedModel(
        stage="malignancy", name=name, uri=f"models:/m-{name}", best_epoch=1, val={"auc": auc}, test={"auc": 1.0}
    )


@pytest.mark.parametrize(
    ("aucs", "winner"),
    [([0.5, 0.75], 1), ([0.75, 0.5], 0), ([0.5, 0.5], 0), ([math.nan, 0.25], 1), ([0.25, math.nan], 0),
     ([math.nan, math.nan], 0), ([0.5, 0.25, 0.75], 2), ([0.5], 0)],
)  # fmt: skip
def test_the_higher_validation_auc_is_kept(aucs: Sequence[float], winner: int) -> None:
    ways = [[model_of(str(place), auc)] for place, auc in enumerate(aucs)]
    assert choose_malignancy.fn(ways) is ways[winner]


def test_both_ways_are_kept_where_the_recipe_says_so() -> None:
    first, second = [model_of("a", 0.9)], [model_of("b", math.nan)]
    assert choose_malignancy.fn([first, second], "both") == [*first, *second]
    assert choose_malignancy.fn([first, second], "scratch") == second
    assert choose_malignancy.fn([first, second], "finetuned") == first


def test_an_ensemble_is_chosen_by_its_members_mean() -> None:
    first, second = [model_of("a", 0.9), model_of("b", 0.5)], [model_of("c", 0.75), model_of("d", 0.75)]
    assert choose_malignancy.fn([first, second]) is second


# calibrate


FAR = (400.0, 400.0, 400.0)
DRAFT = NamedBundle(name="draft", fields={"nodule_threshold": 0.5, "malignant_threshold": 0.4, "recipe": "toy"})


@pytest.fixture
def judged(tmp_path: Path, grid: Grid) -> Callable[..., tuple[EvaluatedScan, FoundScan]]:
    """A scan with so many nodules, and what networks said: of each, of the places elsewhere, on an excluded finding."""

    def make(
        uid: str,
        nodules: Sequence[tuple[bool, float, float]],
        elsewhere: Sequence[float] = (),
        on_excluded: Sequence[float] = (),
    ) -> tuple[EvaluatedScan, FoundScan]:
        volume = tmp_path / f"{uid}.zarr"
        store.write_scan(volume, np.zeros(grid.shape_irc, np.int16), grid, key={})
        centers = [(20.0 * n, 0.0, 0.0) for n in range(len(nodules))]
        excluded = Excluded(series_uid=uid, center_xyz=(0.0, 200.0, 0.0), diameter_mm=6)
        scan = EvaluatedScan(
            series_uid=uid,
            store=volume,
            nodules=tuple(
                Nodule(series_uid=uid, center_xyz=center, diameter_mm=8, malignant=malignant, ratings=(3,))
                for center, (malignant, _, _) in zip(centers, nodules)
            ),
            unrated=(),
            excluded=(excluded,),
            textures=(),
        )
        points = [*centers, *[FAR] * len(elsewhere), *[excluded.center_xyz] * len(on_excluded)]
        probs = np.array([*(prob for _, prob, _ in nodules), *elsewhere, *on_excluded])
        nothing = np.full(len(points), np.nan)
        files = FoundScan(
            series_uid=uid,
            answers=tmp_path / uid / "answers.npz",
            annotated=tmp_path / uid / "annotated.npz",
            findings=tmp_path / uid / "findings.csv",
            key="key",
            truth_key="key",
        )
        answers = Answers(
            marked=Marked(shape=grid.shape_irc, voxels=np.empty(0, np.int64), probs=np.empty(0, np.float32), floor=0.5),
            candidates=Candidates(
                centers_irc=xyz_to_irc(np.array(points).reshape(-1, 3), grid), diameters_mm=nothing, scores=nothing
            ),
            prob_nodule=probs,
            prob_malignant=nothing,
        )
        write_answers(files.answers, answers, "key")
        segmented = SegmentedScan(voxels=1, flagged=0, tp=0, fp=0, fn=0, slices=0, nodules=())
        said = np.array([prob for _, _, prob in nodules], dtype=np.float64)
        write_annotated(files.annotated, Annotated(prob_malignant=said, segmented=segmented), "key")
        return scan, files

    return make


def test_curves_are_fitted_to_what_was_true(judged: Callable[..., Any]) -> None:
    nodules = [(n in (2, 5, 7, 9, 10, 11), 0.6 + 0.03 * n, 0.3 + 0.05 * n) for n in range(12)]
    elsewhere, on_excluded = [0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02], [0.99] * 5
    pairs = [judged("1", nodules[:6], elsewhere[:3], on_excluded), judged("2", nodules[6:], elsewhere[3:])]
    bundle = calibrate.fn(DRAFT, *zip(*pairs))
    expected = Calibration(
        # An excluded finding is neither a nodule nor none.
        nodule=fit_platt([True] * 12 + [False] * 8, [prob for _, prob, _ in nodules] + elsewhere),
        malignancy=fit_platt([malignant for malignant, _, _ in nodules], [prob for _, _, prob in nodules]),
    )
    given = Calibration.from_dict(bundle.fields["calibration"])
    for curve, wanted in ((given.nodule, expected.nodule), (given.malignancy, expected.malignancy)):
        assert wanted is not None
        assert curve is not None
        assert (curve.slope, curve.intercept) == (pytest.approx(wanted.slope), pytest.approx(wanted.intercept))
    # The thresholds move with them: nothing changes its side.
    assert given.nodule is not None
    assert bundle.fields["nodule_threshold"] == given.nodule([0.5])[0]
    assert given.malignancy is not None
    assert bundle.fields["malignant_threshold"] == given.malignancy([0.4])[0]
    assert bundle.fields["recipe"] == "toy"


def test_too_little_to_fit_leaves_probabilities_and_thresholds(judged: Callable[..., Any]) -> None:
    bundle = calibrate.fn(DRAFT, *zip(judged("1", [(True, 0.9, 0.8)], [0.1])))
    assert bundle.fields["calibration"]["method"] == "none"
    assert (bundle.fields["nodule_threshold"], bundle.fields["malignant_threshold"]) == (0.5, 0.4)
    empty = calibrate.fn(DRAFT, [], [])
    assert empty.fields["calibration"]["method"] == "none"


def test_answers_that_are_gone_are_no_calibration(judged: Callable[..., Any]) -> None:
    scan, files = judged("1", [(True, 0.9, 0.8)])
    files.answers.unlink()
    with pytest.raises(ValueError, match="gone, damaged, or replaced"):
        calibrate.fn(DRAFT, [scan], [files])
