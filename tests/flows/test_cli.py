"""What the `luna` command says when it cannot go on: one line, a non-zero exit, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lungml.home import Home
from lungml.phantom import PhantomSettings, write_phantoms
from tests.flows.environments import environment_of

PROJECT = Path(__file__).parents[2]
Luna = Callable[..., tuple[int, str, str]]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with environment_of(Home(tmp_path / "home"), columns=80):
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        yield


@pytest.fixture(scope="module")
def two_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("luna16")
    write_phantoms(folder, scans=2, seed=0, settings=PhantomSettings(size_irc=(32, 48, 48)), workers=1)
    return folder


def only_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize("command", [("run",), ("data", "prepare")])
def test_a_missing_folder(command: tuple[str, ...], luna: Luna, tmp_path: Path) -> None:
    status, _, said = luna(*command, "--luna-dir", tmp_path / "none")
    assert status == 1
    assert only_line(said) == f"error: {tmp_path / 'none'}: no such folder; name a folder in LUNA16's layout"


def test_a_folder_without_scans(luna: Luna, tmp_path: Path) -> None:
    status, _, said = luna("run", "--luna-dir", tmp_path)
    assert status == 1
    assert "no scans here" in only_line(said)


def test_a_missing_table(luna: Luna, two_scans: Path, tmp_path: Path) -> None:
    status, _, said = luna("run", "--luna-dir", two_scans, "--tables", tmp_path)
    assert status == 1
    assert "annotations_with_malignancy.csv: missing" in only_line(said)


def test_too_few_scans_say_how_many_are_needed(luna: Luna, two_scans: Path) -> None:
    status, _, said = luna("run", "--luna-dir", two_scans)
    assert status == 1
    assert "2 scans are on disk (0 train, 1 val, 1 test)" in only_line(said)
    assert "need at least 3" in said


@pytest.mark.parametrize("command", [("run",), ("data", "prepare")])
def test_an_unknown_recipe(command: tuple[str, ...], luna: Luna, two_scans: Path) -> None:
    status, _, said = luna(*command, "--luna-dir", two_scans, "--recipe", "secret")
    assert status == 1
    assert only_line(said) == "error: unknown recipe 'secret'; choose one of best, report, demo"


def test_a_device_that_is_not_there(luna: Luna, two_scans: Path) -> None:
    status, _, said = luna("run", "--luna-dir", two_scans, "--device", "abacus")
    assert status == 1
    assert "device 'abacus' is not one that PyTorch knows" in only_line(said)


def test_a_bundle_that_is_not_there(luna: Luna, two_scans: Path, tmp_path: Path) -> None:
    scan = next(two_scans.rglob("*.mhd"))
    status, _, said = luna("read", scan, "--bundle", "models:/luna/9", "--out", tmp_path / "out")
    assert status == 1
    assert only_line(said).startswith("error: models:/luna/9: no such bundle in")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["512x512", "axbxc", "8x512x512", "512x512x99999"])
def test_a_size_that_cannot_be_drawn(size: str, luna: Luna, tmp_path: Path) -> None:
    status, _, said = luna("data", "phantom", tmp_path / "out", "--size", size)
    assert status in (1, 2)
    assert size.split("x")[-1] in said
    assert not (tmp_path / "out").exists()


def test_phantoms_of_other_settings(luna: Luna, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ranges = (
        "--nodules",
        "1-6",
        "--malignant",
        "0.25",
        "--noise",
        "24-44",
        "--slice-mm",
        "1.25-3",
        "--pixel-mm",
        "0.5-0.8",
    )
    assert luna("data", "phantom", out, "--scans", 1, "--size", "48x48x32", "--workers", 1, *ranges)[0] == 0
    settings = json.loads((out / "phantom.json").read_text())["settings"]
    assert settings == {
        "size_irc": [32, 48, 48], "nodules": [1, 6], "negatives_per_nodule": 30, "malignant_share": 0.25,
        "noise_hu": [24, 44], "slice_mm": [1.25, 3], "pixel_mm": [0.5, 0.8],
    }  # fmt: skip


@pytest.mark.parametrize("noise", ["12", "a-b", "32-12"])
def test_a_range_that_is_none(noise: str, luna: Luna, tmp_path: Path) -> None:
    status, _, said = luna("data", "phantom", tmp_path / "out", "--size", "48x48x32", "--noise", noise)
    assert status in (1, 2)
    assert "noise" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "segmentation.los=report"), "no setting recipe.segmentation.los; choose one of"),
        (("--set", "segmentation.loss"), "give SETTING=VALUE"),
        (("--budget", "0"), "the budget is 0.0, not a positive number"),
        (("--precision", "fp8"), "unknown precision 'fp8'; choose one of fp32, bf16"),
        (("--device", "cuda:1", "--devices", "2"), "device 'cuda"),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("train", "segmentation")])
def test_settings_that_are_none(
    command: tuple[str, ...], options: tuple[str, ...], said: str, luna: Luna, two_scans: Path
) -> None:
    status, _, words = luna(*command, "--luna-dir", two_scans, *options)
    assert status == 1
    assert said in only_line(words)


def test_a_stage_that_is_none(luna: Luna, two_scans: Path) -> None:
    status, _, said = luna("train", "everything", "--luna-dir", two_scans)
    assert status == 1
    assert "no stage 'everything'; choose one of segmentation, classification, malignancy" in only_line(said)


def test_phantoms_are_drawn_once(luna: Luna, tmp_path: Path) -> None:
    draw = ("data", "phantom", tmp_path / "out", "--scans", 2, "--size", "48x48x32", "--workers", 1)
    assert luna(*draw)[:2] == (0, f"2 synthetic scans in {tmp_path / 'out'}\n")
    scans = sorted((tmp_path / "out").rglob("*.raw"))
    assert [scan.stat().st_size for scan in scans] == [2 * 48 * 48 * 32] * 2
    written = [scan.stat().st_mtime_ns for scan in scans]
    assert luna(*draw)[0] == 0
    assert [scan.stat().st_mtime_ns for scan in scans] == written
    status, _, said = luna(*draw, "--seed", 1)
    assert status == 1
    assert "synthetic scans of other settings" in only_line(said)


def limited(*arguments: object, home: Path, largest_file: int) -> subprocess.CompletedProcess[str]:
    """Run the command where no file may grow beyond a size: writing fails as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    env = {**os.environ, "LUNA_HOME": str(home), "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *map(str, arguments)],
        env=env,
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )


def test_a_full_disk_while_drawing_leaves_nothing_to_trust(tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw = ("data", "phantom", out, "--scans", 1, "--size", "64x64x32", "--workers", 1)
    full = limited(*draw, home=tmp_path / "home", largest_file=100_000)
    assert full.returncode == 1
    assert only_line(full.stderr).endswith(".raw: File too large")
    assert not (out / "phantom.json").exists()
    assert not [file for file in out.rglob("*.raw") if file.stat().st_size != 2 * 64 * 64 * 32]
    enough = limited(*draw, home=tmp_path / "home", largest_file=10_000_000)
    assert enough.returncode == 0
    assert np.fromfile(next(out.rglob("*.raw")), "<i2").size == 64 * 64 * 32


@pytest.mark.slow
def test_a_home_that_cannot_be_written_to_is_one_line(two_scans: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "scans").write_text("a file where the folder should be")
    full = limited("data", "prepare", "--luna-dir", two_scans, home=home, largest_file=resource.RLIM_INFINITY)
    assert full.returncode == 1
    last = full.stderr.splitlines()[-1]
    assert last.startswith(f"error: {home / 'scans'}")
    assert "Traceback" not in full.stderr


def test_arguments_that_cannot_be_are_refused_before_anything_starts(luna: Luna, two_scans: Path) -> None:
    status, _, said = luna("demo", "--seed", -1)
    assert status == 2
    assert "equal to 0" in said
    status, _, said = luna("run", "--luna-dir", two_scans, "--device", "meta")
    assert status == 1
    assert only_line(said) == "error: device 'meta' is not one that luna runs on; use auto, cpu or cuda"
