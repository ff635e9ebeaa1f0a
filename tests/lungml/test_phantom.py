import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from lungml import luna, phantom
from lungml.ct import read_scan
from lungml.geometry import irc_to_xyz, xyz_to_irc
from lungml.phantom import PhantomError, PhantomSettings, draw_phantom, write_phantoms

SMALL = PhantomSettings(size_irc=(40, 96, 96), nodules=(1, 2))
TINY = PhantomSettings(size_irc=(36, 64, 64), nodules=(1, 2))
# version, nodules' diameters (mm) and centres (voxels), the last look-alike, mean HU
GOLDEN = (3, [6.92], [(18.95, 28.031, 18.226)], (24.29, 24.203, 45.485), -774.72)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "tree"
    write_phantoms(out, scans=11, seed=3, settings=SMALL, workers=2)
    return out


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(tree: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "again", scans=11, seed=3, settings=SMALL, workers=1)
    assert digests(tmp_path / "again") == digests(tree)


def test_it_is_laid_out_as_luna16(tree: Path) -> None:
    assert {f"subset{n}" for n in range(10)} <= {p.name for p in tree.iterdir()}
    uids = (tree / "seriesuids.csv").read_text().split()
    assert len(uids) == 11
    assert uids == sorted(uids)
    data = luna.read_luna(tree)
    assert tuple(uids) == data.series_uids
    assert set(data.scans) == set(uids)
    assert not data.notes
    negatives = sum(len(places) for places in data.negatives.values())
    assert 20 * len(data.nodules) < negatives < 40 * len(data.nodules)


def test_headers_say_what_was_drawn(tree: Path) -> None:
    directions = set()
    for path in sorted(tree.glob("subset*/*.mhd")):
        scan, image = read_scan(path), sitk.ReadImage(str(path))
        np.testing.assert_array_equal(scan.hu, sitk.GetArrayFromImage(image))
        np.testing.assert_allclose(np.ravel(scan.grid.direction), image.GetDirection(), atol=1e-9)
        assert 0.6 <= scan.grid.spacing_xyz[0] <= 0.9
        assert 1.0 <= scan.grid.spacing_xyz[2] <= 2.5
        assert scan.hu.min() in (-3024, -2048) or scan.hu.min() >= -1024
        directions.add(tuple(np.round(np.ravel(scan.grid.direction), 3)))
    assert len(directions) > 1


def test_solid_nodules_lie_where_the_tables_say(tree: Path) -> None:
    data = luna.read_luna(tree)
    for nodule in data.nodules:
        scan = read_scan(data.scans[nodule.series_uid])
        index, row, col = np.rint(xyz_to_irc(nodule.center_xyz, scan.grid)).astype(int)
        assert scan.hu[index, row, col] > -750
        assert nodule.malignant == (sum(rating >= 4 for rating in nodule.ratings) >= 2)
        assert 3 <= nodule.diameter_mm <= 30
    near = pd.read_csv(tree / "candidates.csv").query("`class` == 1")
    for row in near.itertuples():
        own = [n for n in data.nodules if n.series_uid == row.seriesuid]
        place = np.array([row.coordX, row.coordY, row.coordZ])
        assert min(np.linalg.norm(place - n.center_xyz) / n.diameter_mm for n in own) < 0.5


def test_look_alikes_are_not_nodules(tree: Path) -> None:
    data = luna.read_luna(tree)
    for nodule in data.nodules:
        distances = np.linalg.norm(data.negatives[nodule.series_uid] - np.array(nodule.center_xyz), axis=1)
        assert distances.min() > nodule.diameter_mm / 2


def test_tables_and_grids_lead_back_to_the_drawn_voxels(tree: Path) -> None:
    data, tilted = luna.read_luna(tree), 0
    uids = [phantom._series_uid(3, number) for number in range(11)]
    for number, uid in enumerate(uids):
        drawn = draw_phantom(uid, np.random.default_rng([3, number]), SMALL)
        grid = read_scan(data.scans[uid]).grid
        np.testing.assert_allclose(grid.direction, drawn.grid.direction, atol=1e-9)
        assert (grid.spacing_xyz, grid.origin_xyz) == (drawn.grid.spacing_xyz, drawn.grid.origin_xyz)
        centers = np.array([n.center_xyz for n in data.nodules if n.series_uid == uid])
        np.testing.assert_allclose(xyz_to_irc(centers, grid), [n.center_irc for n in drawn.nodules], atol=1e-6)
        np.testing.assert_allclose(xyz_to_irc(data.negatives[uid], grid), drawn.negatives_irc, atol=1e-6)
        rows = [row for row in data.textures if row.series_uid == uid]
        assert [(row.texture, row.diameter_mm) for row in rows] == [(n.texture, n.diameter_mm) for n in drawn.nodules]
        np.testing.assert_array_equal([row.center_xyz for row in rows], centers)
        excluded = np.array([e.center_xyz for e in data.excluded if e.series_uid == uid])
        if len(excluded):
            np.testing.assert_allclose(irc_to_xyz(drawn.excluded_irc, grid), excluded, atol=1e-6)
        tilted += int(np.abs(np.abs(grid.direction) - np.eye(3)).max() > 1e-3)
    assert tilted


def test_some_directions_are_flipped_and_some_tilted() -> None:
    rng = np.random.default_rng(0)
    matrices = np.array([phantom._direction(rng) for _ in range(400)])
    flipped, tilted = matrices[:, 0, 0] < 0, np.abs(matrices[:, 1, 2]) > 1e-6
    assert 0.12 < flipped.mean() < 0.28
    assert 0.09 < tilted.mean() < 0.21
    assert (flipped & tilted).any()
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.tile(np.eye(3), (400, 1, 1)), atol=1e-9)


def test_some_scans_are_padded_and_grids_hold_plain_numbers() -> None:
    drawn = [draw_phantom("1", np.random.default_rng(seed), TINY) for seed in range(12)]
    assert {scan.padding_hu for scan in drawn} == {0, -2048, -3024}
    assert {scan.hu.shape for scan in drawn} == {TINY.size_irc}
    for scan in drawn:
        numbers = (*scan.grid.spacing_xyz, *scan.grid.origin_xyz, *np.ravel(scan.grid.direction).tolist())
        assert {type(number) for number in numbers} == {float}


def test_about_thirty_look_alikes_come_with_a_nodule() -> None:
    settings = PhantomSettings(size_irc=(32, 96, 96), nodules=(0, 2))
    drawn = [draw_phantom("1", np.random.default_rng(seed), settings) for seed in range(6)]
    assert [len(scan.negatives_irc) for scan in drawn] == [30 * len(scan.nodules) or 15 for scan in drawn]
    assert any(not scan.nodules for scan in drawn)


def test_what_is_drawn_changes_only_with_the_version() -> None:
    drawn = draw_phantom("1", np.random.default_rng(7), TINY)
    version, diameters, centers, look_alike, mean_hu = GOLDEN
    hint = "raise PHANTOM_VERSION, then note the new values in GOLDEN"
    assert version == phantom.PHANTOM_VERSION
    assert [n.diameter_mm for n in drawn.nodules] == pytest.approx(diameters, abs=0.01), hint
    np.testing.assert_allclose([n.center_irc for n in drawn.nodules], centers, atol=0.01, err_msg=hint)
    np.testing.assert_allclose(drawn.negatives_irc[-1], look_alike, atol=0.01, err_msg=hint)
    assert float(drawn.hu.mean()) == pytest.approx(mean_hu, abs=0.05), hint


def test_a_finished_folder_is_left_alone_and_other_settings_are_refused(tree: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in tree.rglob("*")}
    write_phantoms(tree, scans=11, seed=3, settings=SMALL)
    assert {file: file.stat().st_mtime_ns for file in tree.rglob("*")} == before
    with pytest.raises(PhantomError, match="other settings"):
        write_phantoms(tree, scans=11, seed=4, settings=SMALL)


@pytest.mark.parametrize("name", ["annotations.csv", "thesis.txt"])
def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(PhantomError, match="not drawn here") as refused:
        write_phantoms(tmp_path, scans=1, seed=0, settings=TINY)
    assert "\n" not in str(refused.value)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]
    with pytest.raises(PhantomError, match="is a file"):
        write_phantoms(tmp_path / name, scans=1, seed=0, settings=TINY)


def test_a_killed_drawing_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(phantom, "write_csv_atomic", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_phantoms(tmp_path / "a", scans=2, seed=3, settings=TINY, workers=1)
    assert not (tmp_path / "a" / "phantom.json").exists()
    with pytest.raises(PhantomError, match="unfinished synthetic scans of other settings"):
        write_phantoms(tmp_path / "a", scans=1, seed=3, settings=TINY, workers=1)
    write_phantoms(tmp_path / "a", scans=2, seed=3, settings=TINY, workers=1)
    assert json.loads((tmp_path / "a" / "phantom.json").read_text())["scans"] == 2
    assert not (tmp_path / "a" / "phantom.started").exists()


@pytest.mark.parametrize("bad", [{"size_irc": (5, 512, 512)}, {"size_irc": (64, 64, 2000)}, {"size_irc": (64, 64)}])
def test_impossible_sizes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(PhantomError, match="size") as refused:
        PhantomSettings(**bad)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"nodules": (3, 1)},
        {"slice_mm": (0.0, 1.0)},
        {"pixel_mm": (0.6, float("inf"))},
        {"noise_hu": (-1.0, 5.0)},
        {"malignant_share": 1.5},
        {"negatives_per_nodule": -1},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(PhantomError):
        PhantomSettings(**bad)


def test_no_scans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PhantomError, match="one or more"):
        write_phantoms(tmp_path, scans=0, seed=0)
