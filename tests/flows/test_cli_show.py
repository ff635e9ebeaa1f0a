"""`luna show` writes its figures without a bundle or a server, and says in one line what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungml import rendering
from lungml.ct import Scan, read_scan
from lungml.findings import Finding, write_findings
from lungml.geometry import as_triple, xyz_to_irc
from lungml.phantom import PhantomSettings, write_phantoms
from lungml.scan_marks import truth_marks

PROJECT = Path(__file__).parents[2]
Luna = Callable[..., tuple[int, str, str]]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUNA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "luna16"
    settings = PhantomSettings(size_irc=(40, 64, 64), nodules=(2, 2), pixel_mm=(5.0, 5.0), slice_mm=(2.5, 2.5))
    write_phantoms(folder, scans=1, seed=1, settings=settings, workers=1)
    return folder


@pytest.fixture(scope="module")
def path(tree: Path) -> Path:
    return next(tree.rglob("*.mhd"))


@pytest.fixture(scope="module")
def scan(path: Path) -> Scan:
    return read_scan(path)


@pytest.fixture
def findings(tmp_path: Path, tree: Path, scan: Scan) -> Path:
    """The first nodule found, and a place that was filtered."""
    nodule = truth_marks(tree, scan)[0]
    rows = [(nodule.center_xyz, "malignant"), (as_triple(np.add(nodule.center_xyz, 10)), "filtered")]
    found = [
        Finding(
            center_irc=as_triple(xyz_to_irc(place, scan.grid)),
            center_xyz=place,
            diameter_mm=9.0,
            prob_nodule=0.9,
            prob_malignant=0.8,
            stage=stage,  # type: ignore[arg-type]
        )
        for place, stage in rows
    ]
    write_findings(tmp_path / "findings.csv", scan.series_uid, found)
    return tmp_path / "findings.csv"


def figures(folder: Path) -> list[str]:
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.iterdir())
    return sorted(file.name for file in folder.iterdir())


def drawn_at(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the figures are asked for, as they are drawn."""
    from lungml import augmentation_sheet, scan_figures

    asked: list[dict[str, Any]] = []
    for module, name in ((scan_figures, "draw_slices"), (augmentation_sheet, "draw_augmented")):
        original = getattr(module, name)

        def noted(scan: Scan, center: Any, *rest: Any, original: Any = original, **named: Any) -> Any:
            asked.append({"center": center, **named})
            return original(scan, center, *rest, **named)

        monkeypatch.setattr(module, name, noted)
    return asked


def test_a_whole_scan_goes_to_a_folder_of_its_own_here(luna: Luna, path: Path, scan: Scan, tmp_path: Path) -> None:
    code, said, noted = luna("show", path)
    folder = Path("show") / scan.series_uid
    assert (code, figures(tmp_path / folder)) == (0, ["augmentation.png", "slices.png"])
    assert said.splitlines() == [f"{folder}/slices.png", f"{folder}/augmentation.png", "Not for clinical use."]
    assert "note: augmentation.png shows the middle of the scan: name another place with --at" in noted.splitlines()
    assert not (tmp_path / "home").exists()  # nothing else is begun


def test_a_point_is_what_both_figures_show(luna: Luna, path: Path, tree: Path, scan: Scan, monkeypatch: Any) -> None:
    asked = drawn_at(monkeypatch)
    x, y, z = truth_marks(tree, scan)[0].center_xyz
    options = ("--tables", tree, "--size-mm", 40, "--window", "bone", "--augmented", 1, "--seed", 5)
    code, _, noted = luna("show", path, "--out", "here", "--at", f"{x},{y},{z}", *options)
    assert (code, noted) == (0, "")
    slices, sheet = asked
    assert slices["center"] == sheet["center"] == (x, y, z)
    assert (slices["size_mm"], slices["window"], sheet["window"]) == (40, "bone", "bone")
    assert (sheet["versions"], sheet["seed"], sheet["recipe"]) == (1, 5, "report")
    assert {mark.kind for mark in slices["marks"]} <= {"truth", "truth_malignant"}
    assert len(slices["marks"]) == 2


def test_a_finding_is_named_by_its_row(
    luna: Luna, path: Path, findings: Path, tree: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = drawn_at(monkeypatch)
    code, _, _ = luna("show", path, "--out", "here", "--findings", findings, "--at", 1)
    assert code == 0
    assert asked[0]["center"] == pytest.approx(truth_marks(tree, scan)[0].center_xyz, abs=1e-3)
    assert asked[0]["subject"] == "finding 1"
    assert [mark.kind for mark in asked[0]["marks"]] == ["malignant", "filtered"]


def test_without_a_point_the_sheet_shows_a_finding_or_a_nodule(
    luna: Luna, path: Path, findings: Path, tree: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = drawn_at(monkeypatch)
    _, _, noted = luna("show", path, "--out", "here", "--findings", findings, "--tables", tree)
    assert "augmentation.png shows finding 1" in noted
    _, _, noted = luna("show", path, "--out", "here", "--tables", tree)
    assert "augmentation.png shows the largest annotated nodule" in noted
    largest = max(truth_marks(tree, scan), key=lambda mark: mark.diameter_mm)
    assert asked[3]["center"] == largest.center_xyz
    assert asked[2]["size_mm"] is None


def test_the_same_seed_is_the_same_file(luna: Luna, path: Path, tmp_path: Path) -> None:
    for folder in ("one", "again"):
        assert luna("show", path, "--out", folder, "--seed", 1, "--augmented", 1)[0] == 0
    one, again = ((tmp_path / folder / "augmentation.png").read_bytes() for folder in ("one", "again"))
    assert one == again


def test_a_place_that_is_none_is_refused_before_anything_is_read(luna: Luna, path: Path, tmp_path: Path) -> None:
    for text in ("1,2", "a,b,c", "0", "1,2,nan"):
        code, said, error = luna("show", "no-such.mhd", "--at", text)
        assert (code, said, error.count("\n")) == (1, "", 1)
        assert error.startswith(f"error: --at '{text}' is no place; give x,y,z in mm")
    assert not (tmp_path / "show").exists()


def test_a_point_outside_is_told_the_extent(luna: Luna, path: Path, tmp_path: Path) -> None:
    code, said, error = luna("show", path, "--at", "9000,0,0")
    assert (code, said) == (1, "")
    assert error.splitlines()[-1].startswith("error: 9000,0,0 mm lies outside the scan, which spans x ")
    assert not (tmp_path / "show").exists()


def test_what_is_not_there_or_belongs_elsewhere_is_one_line(
    luna: Luna, path: Path, findings: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    write_findings(other, "9.9", [])
    other.write_text(other.read_text() + findings.read_text().splitlines()[1].replace("1.2.826", "9.9.826") + "\n")
    for options, words in (
        (("no-such.mhd",), "no such file"),
        (("a.txt",), "is not a kind of scan we read"),
        ((path, "--findings", "nope.csv"), "nope.csv: cannot be read"),
        ((path, "--findings", other), "it holds findings of series 9.9.826"),
        ((path, "--at", 3, "--findings", findings), "there are 2 findings"),
        ((path, "--at", 1), "name its file with --findings"),
        ((path, "--tables", tmp_path), "neither annotations_with_malignancy.csv nor annotations.csv is here"),
        ((path, "--out", findings / "sub"), "cannot be written to (Not a directory); name another folder with --out"),
        ((path, "--recipe", "mine"), "unknown recipe 'mine'"),
    ):
        code, said, error = luna("show", *options)
        assert (code, said) == (1, "")
        (line,) = [line for line in error.splitlines() if line.startswith("error:")]
        assert words in line
        assert "Traceback" not in error


def test_a_window_that_is_none_is_refused(luna: Luna, path: Path) -> None:
    code, _, error = luna("show", path, "--window", "soft")
    assert code == 2
    assert "'soft' is none of lung, mediastinum, bone" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_one_line(luna: Luna, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    code, said, error = luna("show", path, "--out", folder)
    assert (code, said) == (1, "")
    assert f"{folder}: cannot be written to (Permission denied)" in error


def test_a_folder_that_the_system_refuses_is_one_line(luna: Luna, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr("lungml.files.os.open", refuse)
        code, said, error = luna("show", path, "--out", "here")
    assert (code, said) == (1, "")
    assert "error: here: cannot be written to (Read-only file system); name another folder with --out" in error


def test_two_slices_are_shown_and_noted(luna: Luna, tmp_path: Path, path: Path) -> None:
    text = path.read_text().replace("DimSize = 64 64 40", "DimSize = 64 64 2").replace(path.stem, "two")
    (tmp_path / "two.mhd").write_text(text)
    raw = path.with_suffix(".raw").read_bytes()
    (tmp_path / "two.raw").write_bytes(raw[64 * 64 * 2 * 20 :][: 64 * 64 * 2 * 2])
    code, _, noted = luna("show", "two.mhd", "--out", "here", "--volume")
    assert code == 1  # the picture in 3D was asked for
    assert figures(tmp_path / "here") == ["augmentation.png", "slices.png"]
    assert "not a whole chest" in noted
    assert "too thin for a picture in 3D" in noted.splitlines()[-1]


def test_without_the_extra_the_other_figures_are_written(
    luna: Luna, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering.importlib.util, "find_spec", lambda name: None)
    code, said, error = luna("show", path, "--out", "here", "--volume")
    assert (code, figures(tmp_path / "here")) == (1, ["augmentation.png", "slices.png"])
    assert error.splitlines()[-1].startswith(
        "error: a picture in 3D needs PyVista: `pip install luna-pipeline[volume]`"
    )
    assert said.splitlines()[:2] == ["here/slices.png", "here/augmentation.png"]


@pytest.mark.slow
def test_a_volume_is_drawn_without_a_display(path: Path, tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyvista", reason="PyVista is not installed: luna-pipeline[volume]")
    env = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    env |= {"LUNA_HOME": str(tmp_path / "home"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", "from flows.cli import main; main()", "show", str(path), "--tables", str(tree)]
    done = subprocess.run(
        [*command, "--volume", "--out", "here"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    if "the renderer was ended by signal" in done.stderr:
        pytest.skip(f"this machine cannot draw in 3D: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert figures(tmp_path / "here") == ["augmentation.png", "slices.png", "volume.png"]
    assert "WARN" not in done.stderr  # VTK's own words stay with the child
