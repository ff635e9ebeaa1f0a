import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from lungml import luna, phantom
from lungml.ct import read_scan
from lungml.geometry import xyz_to_irc
from lungml.metrics import roc_auc
from lungml.phantom import PhantomError, PhantomSettings, draw_nodule_traits, draw_phantom, write_phantoms

SMALL = PhantomSettings(size_irc=(40, 112, 112), nodules=(1, 2))


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


def test_the_diameter_separates_malignant_nodules_about_as_well_as_in_luna16() -> None:
    rng = np.random.default_rng(0)
    traits = [draw_nodule_traits(rng) for _ in range(3000)]
    malignant = np.array([t["malignant"] for t in traits])
    assert 0.85 <= roc_auc(malignant, [t["diameter_mm"] for t in traits]) <= 0.92
    assert 0.30 <= malignant.mean() <= 0.37
    # Shape tells more than size: among nodules of one size, bumps still separate.
    middling = [t for t in traits if 8 <= t["diameter_mm"] <= 11]
    assert roc_auc([t["malignant"] for t in middling], [t["lobulation"] for t in middling]) > 0.75


def test_padding_lies_outside_a_circle() -> None:
    padded = [draw_phantom("1", np.random.default_rng(seed), SMALL) for seed in range(8)]
    seen = {drawn.padding_hu for drawn in padded}
    assert seen <= {0, -2048, -3024}
    assert len(seen) > 1
    for drawn in padded:
        if drawn.padding_hu:
            assert (drawn.hu[:, 0, 0] == drawn.padding_hu).all()
            assert (drawn.hu[:, 56, 56] > -1100).all()


def test_a_finished_folder_is_left_alone_and_other_settings_are_refused(tree: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in tree.rglob("*")}
    write_phantoms(tree, scans=11, seed=3, settings=SMALL)
    assert {file: file.stat().st_mtime_ns for file in tree.rglob("*")} == before
    with pytest.raises(PhantomError, match="other settings"):
        write_phantoms(tree, scans=11, seed=4, settings=SMALL)


def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_text("mine")
    with pytest.raises(PhantomError, match="not drawn here"):
        write_phantoms(tmp_path, scans=1, seed=0, settings=SMALL)
    assert (tmp_path / "annotations.csv").read_text() == "mine"


def test_a_killed_drawing_is_completed(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(phantom, "write_csv_atomic", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_phantoms(tmp_path / "a", scans=2, seed=3, settings=SMALL, workers=1)
    assert not (tmp_path / "a" / "phantom.json").exists()
    write_phantoms(tmp_path / "a", scans=2, seed=3, settings=SMALL, workers=1)
    assert json.loads((tmp_path / "a" / "phantom.json").read_text())["scans"] == 2


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(PhantomError, match="not between 32 and 1024"):
        PhantomSettings(size_irc=(5, 512, 512))
