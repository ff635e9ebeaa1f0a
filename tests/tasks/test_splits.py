"""The check of the splits on what the pipeline's own tasks wrote, under their own keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lungml.candidates import GroupingSettings
from lungml.home import Home
from lungml.leaks import LeakError, check_splits
from lungml.marked import Marked
from lungml.recipes.data import PreparedScan
from lungml.sampling import NegativePlan
from tasks import training
from tasks.data import build_mask, cache_crops, convert_scan
from tasks.training import Pipeline, mine_candidates
from tasks.truth import ScanTruth
from tests.tasks.outcomes import done

# Whose noise each scan has: the last two are one scan under two names.
NUMBERS = {"1.0": ("train", 0), "1.1": ("train", 1), "1.2": ("val", 2), "1.3": ("test", 3), "1.4": ("test", 0)}


@pytest.fixture(scope="module")
def scans(
    tmp_path_factory: pytest.TempPathFactory, toy: Callable[..., ScanTruth], no_prefect_run: None
) -> dict[str, PreparedScan]:
    """Two to learn from, one to validate and two to test on, the last with the voxels of the first."""
    folder = tmp_path_factory.mktemp("scans")
    home = Home(folder / "artifacts")
    plan = NegativePlan(kind="fixed", per_scan=4)
    prepared = {}
    for uid, (split, number) in NUMBERS.items():
        stored = convert_scan.fn(toy(folder, uid, split, number), home)
        build_mask.fn(stored, "bounded")
        prepared[uid] = done(
            cache_crops.fn(
                stored, home, recipe_name="toy", rule="bounded", negatives=plan, negative_slabs_per_scan=2, seed=0
            )
        )
    return prepared


def test_what_the_tasks_write_passes_and_a_copy_does_not(scans: dict[str, PreparedScan]) -> None:
    *clean, copy = scans.values()
    check_splits(clean)
    with pytest.raises(LeakError, match=r"1\.0 \(train\) and 1\.4 \(test\) hold the same voxels"):
        check_splits([*clean, copy])


def test_mined_crops_are_known_by_the_crops_of_their_scan(
    scans: dict[str, PreparedScan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(training, "load_unet", lambda *_, **__: None)
    monkeypatch.setattr(training, "segment", lambda hu, *_, **__: Marked.of_mask(hu > 0))
    pipeline = Pipeline(home=Home(tmp_path), pipeline_id="p", origin="phantom", seed=0, device="cpu")
    first, second, val, test, _ = scans.values()

    def mined(scan: PreparedScan) -> PreparedScan:
        return done(mine_candidates.fn(scan, "models:/m-1", GroupingSettings(), pipeline))

    one, other = mined(first), mined(second)
    check_splits([one, other, val, test])
    with pytest.raises(LeakError, match=r"1\.0 \(train\) (are of 1\.1|were mined from another scan)"):
        check_splits([replace(one, mined=other.mined), second, val, test])
    with pytest.raises(LeakError, match=r"mined from 1\.2, a val scan"):
        check_splits([one, other, mined(val), test])
