"""`luna data prepare` on the two real scans: stores, masks, and negatives where the data set has no candidates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lungml import crop_cache, store
from lungml.ct import read_scan
from lungml.geometry import irc_to_xyz
from lungml.home import Home
from lungml.luna import read_luna

PROJECT = Path(__file__).parents[2]
REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
PREPARE = [sys.executable, "-c", "from flows.cli import main; main()", "data", "prepare", "--luna-dir"]


def prepare(luna_dir: Path, home: Home) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {"LUNA_HOME": str(home.root), "PYTHONPATH": str(PROJECT)}
    return subprocess.run([*PREPARE, str(luna_dir)], env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def luna_dir() -> Path:
    if not REAL_DATA:
        pytest.skip("LUNGML_REAL_DATA is not set")
    return Path(REAL_DATA) / "luna16"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def first(luna_dir: Path, home: Home) -> subprocess.CompletedProcess[str]:
    return prepare(luna_dir, home)


@pytest.mark.real
def test_two_scans_are_ready_and_what_is_missing_is_said(first: subprocess.CompletedProcess[str], home: Home) -> None:
    assert first.returncode == 0, first.stderr
    assert f"2 scans ready under {home.scans}, 0 set aside" in first.stdout
    said = first.stdout + first.stderr
    assert said.count("negatives are lung positions") == 1
    assert said.count("series in the tables are not on disk") == 1


@pytest.mark.real
def test_a_store_holds_the_scan_and_every_nodule_lies_in_its_mask(
    first: subprocess.CompletedProcess[str], home: Home, luna_dir: Path
) -> None:
    data = read_luna(luna_dir)
    nodules = 0
    for series_uid, path in data.scans.items():
        scan, group = read_scan(path), home.scans / f"{series_uid}.zarr"
        assert np.array_equal(store.read_volume(group), scan.hu)
        assert store.read_grid(group) == scan.grid
        mask = store.read_mask(group, "mask_report")
        cache = crop_cache.CropCache([home.crops / "report.zarr" / series_uid], ["centers_xyz", "labels"])
        centers, labels = cache.column("centers_xyz"), cache.column("labels")
        own = [nodule for nodule in data.nodules if nodule.series_uid == series_uid]
        nodules += len(own)
        assert (labels != crop_cache.NON_NODULE).sum() == len(own)
        marked = irc_to_xyz(np.argwhere(mask), scan.grid)
        for nodule in own:
            assert np.linalg.norm(marked - nodule.center_xyz, axis=1).min() < nodule.diameter_mm / 2

        # Negatives stay away from every annotated and every excluded finding.
        findings = [*data.annotated, *data.excluded, *own]
        places = np.array([finding.center_xyz for finding in findings if finding.series_uid == series_uid])
        negatives = centers[labels == crop_cache.NON_NODULE]
        assert len(negatives) == 100
        assert np.linalg.norm(negatives[:, None] - places[None], axis=2).min() >= 15.0
    assert nodules == 3


@pytest.mark.real
def test_a_second_run_changes_nothing(first: subprocess.CompletedProcess[str], home: Home, luna_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [*home.scans.rglob("*"), *home.crops.rglob("*")]}
    again = prepare(luna_dir, home)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in [*home.scans.rglob("*"), *home.crops.rglob("*")]} == before
