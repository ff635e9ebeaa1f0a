"""`luna data prepare` on the two real scans, and on synthetic ones on a Dask cluster with a bad scan among them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flows.runners import WorkersError, mapped_runner
from lungml import crop_cache, store
from lungml.ct import read_scan
from lungml.geometry import irc_to_xyz
from lungml.home import Home
from lungml.luna import read_luna
from lungml.phantom import PhantomSettings, write_phantoms
from lungml.quarantine import read_quarantine
from tests.lungml.fixtures.loopback import Trick, serving, zipped

PROJECT = Path(__file__).parents[2]
REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
PREPARE = [sys.executable, "-c", "from flows.cli import main; main()", "data", "prepare", "--luna-dir"]


def prepare(luna_dir: Path, home: Home, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "LUNA_"))}
    env |= {"LUNA_HOME": str(home.root), "PYTHONPATH": str(PROJECT), **variables}
    return subprocess.run([*PREPARE, str(luna_dir), *options], env=env, capture_output=True, text=True)


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
        mask = store.read_mask(group, "mask")
        (crops,) = home.crops.glob(f"*.zarr/{series_uid}")
        cache = crop_cache.CropCache([crops], ["centers_xyz", "labels"])
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
        assert len(negatives) == (180 if crops.parent.name.startswith("best-") else 100)  # five epochs of 36
        assert np.linalg.norm(negatives[:, None] - places[None], axis=2).min() >= 15.0
    assert nodules == 3


def times_of_files(home: Home) -> dict[Path, int]:
    """When each file was written; a folder's own time says when a run last found it useful, see `groups.touch`."""
    paths = [path for place in (home.scans, home.crops) for path in place.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.real
def test_a_second_run_changes_nothing(first: subprocess.CompletedProcess[str], home: Home, luna_dir: Path) -> None:
    before = times_of_files(home)
    again = prepare(luna_dir, home)
    assert again.returncode == 0
    assert times_of_files(home) == before


def content(home: Home) -> dict[str, str]:
    """Every file of the stores and crops, by name: the digest of its bytes."""
    return {
        str(path.relative_to(home.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in (home.scans, home.crops)
        for path in Path(str(folder)).rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_dask_workers_make_what_threads_make_and_a_bad_scan_costs_only_itself(tmp_path: Path) -> None:
    luna_dir = tmp_path / "luna16"
    write_phantoms(luna_dir, scans=6, seed=3, settings=PhantomSettings(size_irc=(40, 96, 96)))
    bad = sorted(luna_dir.rglob("*.raw"))[2]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-2])
    options = ("--recipe", "demo", "--val-stride", "3")
    homes = {workers: Home(tmp_path / workers.replace(":", "-")) for workers in ("threads:2", "dask:2")}
    for workers, home in homes.items():
        done = prepare(luna_dir, home, *options, LUNA_WORKERS=workers)
        assert done.returncode == 0, done.stderr
        assert "5 scans ready" in done.stdout
        assert f"1 set aside\nreasons: {home.quarantine_csv}" in done.stdout
        (row,) = read_quarantine(home.quarantine_csv)
        assert row["series_uid"] == bad.stem
        assert "is too short" in row["reason"]
    threads, dask = homes.values()
    assert len(content(threads)) > 5 * 10
    assert content(dask) == content(threads)

    # The same bad files are not read again, unless asked; once they are mended they are, by themselves.
    again = prepare(luna_dir, threads, *options)
    assert again.returncode == 0, again.stderr
    assert "5 scans ready" in again.stdout
    assert "still set aside (--recheck tries it again)" in again.stdout + again.stderr
    rechecked = prepare(luna_dir, threads, *options, "--recheck")
    assert "still set aside" not in rechecked.stdout + rechecked.stderr
    assert "5 scans ready" in rechecked.stdout
    bad.write_bytes(whole)
    mended = prepare(luna_dir, threads, *options)
    assert "6 scans ready" in mended.stdout
    assert read_quarantine(threads.quarantine_csv) == []


@pytest.mark.parametrize(
    ("workers", "kind"),
    [("", "ThreadPoolTaskRunner"), ("3", "ThreadPoolTaskRunner"), ("processes:4", "ProcessPoolTaskRunner"),
     ("dask:2", "DaskTaskRunner"), ("tcp://10.0.0.1:8786", "DaskTaskRunner")],
)  # fmt: skip
def test_one_setting_says_who_works(workers: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_WORKERS", workers)
    assert type(mapped_runner()).__name__ == kind


@pytest.mark.parametrize("workers", ["many", "threads:0", "dask:", "slurm:4", "threads:2; rm"])
def test_another_word_for_workers_is_one_line(workers: str) -> None:
    with pytest.raises(WorkersError, match=r"LUNA_WORKERS is .*; give threads:N"):
        mapped_runner(workers)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_some_subsets_are_fetched_and_the_others_move_no_scan(tmp_path: Path) -> None:
    tree, luna_dir = tmp_path / "tree", tmp_path / "luna16"
    write_phantoms(tree, scans=20, seed=5, settings=PhantomSettings(size_irc=(32, 64, 64), nodules=(1, 2)))
    tables = {name: (tree / name).read_bytes() for name in ("annotations_excluded.csv", "seriesuids.csv")}
    files = {
        "annotations.csv": (tree / "annotations.csv").read_bytes(),
        "candidates_V2.zip": zipped({"candidates_V2.csv": (tree / "candidates.csv").read_bytes()}),
        "evaluationScript.zip": zipped({f"evaluationScript/annotations/{n}": c for n, c in tables.items()}),
    }
    for n in range(10):
        members = sorted((tree / f"subset{n}").iterdir())
        files[f"subset{n}.zip"] = zipped({f"subset{n}/{file.name}": file.read_bytes() for file in members})
    luna_dir.mkdir()
    # Zenodo has none: it is made from LIDC's XML.
    malignancy = "annotations_with_malignancy.csv"
    (luna_dir / malignancy).write_bytes((tree / malignancy).read_bytes())
    home = Home(tmp_path / "home")
    with serving(files) as server:
        options = ("--download", "--zenodo-url", server.url, "--recipe", "demo", "--val-stride", "3")
        server.tricks["subset3.zip"] = [Trick(break_after=5000)]
        some = prepare(luna_dir, home, *options, "--subsets", "0,3", "--no-keep-archives")
        assert some.returncode == 0, some.stderr
        assert "4 scans ready" in some.stdout
        assert not list(luna_dir.rglob("subset*.zip"))
        assert not server.ranges("subset1.zip")
        split = home.split_csv.read_text()
        assert split.count("\n") == 21  # every series has its place already
        before = content(home)
        rest = prepare(luna_dir, home, *options)
        assert rest.returncode == 0, rest.stderr
        assert "20 scans ready" in rest.stdout
        assert len(server.ranges("subset0.zip")) == 1
    assert home.split_csv.read_text() == split
    after = content(home)
    assert {name: after[name] for name in before} == before
