"""A scan in numbers: right where a person can compute them, the same every time, kept and read again strictly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lungml import profiles
from lungml.findings import Finding
from lungml.geometry import Grid
from lungml.profiles import (
    INPUT_NAMES,
    BundleProfile,
    ProfileError,
    ScanProfile,
    profile_answers,
    profile_scan,
    read_bundle_profile,
    read_scan_profile,
    write_profile,
)

TILTED = ((1, 0, 0), (0, 0.8, -0.6), (0, 0.6, 0.8))


def grid_of(shape: tuple[int, int, int], spacing_xyz: tuple[float, float, float] = (0.5, 0.75, 2.5)) -> Grid:
    return Grid(shape_irc=shape, spacing_xyz=spacing_xyz, origin_xyz=(0, 0, 0), direction=TILTED)


def profile(hu: np.ndarray) -> ScanProfile:
    return profile_scan("1.2", hu.astype(np.int16), grid_of(hu.shape), voxels="k")


def noise(shape: tuple[int, int, int], sd: float, mean: float = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, sd, shape).round()


def test_lengths_are_those_of_the_grid() -> None:
    values = profile(np.zeros((10, 40, 60))).values
    assert (values["pixel_spacing_mm"], values["slice_spacing_mm"]) == (0.625, 2.5)
    assert (values["slices"], values["height_mm"], values["field_mm"]) == (10, 25, 30)  # 40 x 0.75 = 60 x 0.5 = 30


def test_percentiles_are_those_of_the_middle() -> None:
    hu = np.full((8, 64, 64), -3024)  # what a scanner did not see
    hu[:, 16:48, 16:48] = np.arange(32) * 10  # columns of 0 .. 310 HU; every second one is looked at: 0 .. 300
    values = profile(hu).values
    assert values["hu_p50"] == pytest.approx(150, abs=10)
    assert values["hu_p01"] == pytest.approx(0, abs=1)
    assert values["hu_p99"] == pytest.approx(300, abs=1)


def test_what_surrounds_the_patient_changes_nothing() -> None:
    hu = noise((8, 64, 64), 30)
    padded = hu.copy()
    padded[:, :16] = padded[:, 48:] = padded[:, :, :16] = padded[:, :, 48:] = -2048
    assert profile(hu).values == profile(padded).values


def test_it_sees_what_the_networks_see() -> None:
    hu = np.full((4, 64, 64), -3024)
    hu[:, :, 32:] = 3071
    values = profile(hu).values
    assert (values["hu_p01"], values["hu_p99"]) == (-1000, 1000)
    assert values["noise_hu"] is None  # there is no soft tissue


@pytest.mark.parametrize("sd", [5, 20])
def test_noise_is_the_standard_deviation(sd: float) -> None:
    assert profile(noise((16, 128, 128), sd)).values["noise_hu"] == pytest.approx(sd, rel=0.05)


def test_edges_are_no_noise() -> None:
    hu = noise((16, 128, 128), 10)
    hu[:, :, ::16] += 100
    # Three of 16 second differences meet an edge, and move the median a little.
    assert profile(hu).values["noise_hu"] == pytest.approx(10, rel=0.35)


@pytest.mark.parametrize("added", [100, -60])
def test_a_calibration_error_moves_every_percentile(added: int) -> None:
    hu = noise((16, 128, 128), 20)
    before, after = profile(hu).values, profile(hu + added).values
    for percentile in profiles.PERCENTILES:
        assert after[f"hu_p{percentile:02d}"] - before[f"hu_p{percentile:02d}"] == pytest.approx(added, abs=0.01)


def test_a_part_of_the_voxels_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(-900, 300, 160)[:, None, None] + noise((160, 96, 96), 20, 0)
    some = profile(ramp).values
    monkeypatch.setattr(profiles, "STEP", 1)
    monkeypatch.setattr(profiles, "SLICES", 10_000)
    every = profile(ramp).values
    for name in INPUT_NAMES:
        assert some[name] == pytest.approx(every[name], abs=3)  # of 1200 HU


def test_a_long_scan_is_looked_at_evenly() -> None:
    hu = np.repeat(np.arange(400), 64 * 64).reshape(400, 64, 64)  # each slice its number
    values = profile(hu).values
    assert values["hu_p50"] == pytest.approx(200, abs=4)
    assert values["slices"] == 400


def test_the_numbers_of_this_version() -> None:
    """Other numbers of the same voxels need another PROFILE_VERSION."""
    index, row, col = np.ogrid[:12, :64, :64]
    values = profile((7 * index + 13 * row**2 + 29 * col**2) % 300 - 140).values
    assert {profiles.PROFILE_VERSION: [values[name] for name in INPUT_NAMES[5:]]} == {
        1: [-137.156, -125.925, -66.1667, 19.1923, 95.9286, 145.8091, 157.5853, 146.2768],
    }


def finding(prob_nodule: float, prob_malignant: float) -> Finding:
    stage = "filtered" if prob_nodule < 0.5 else "malignant"
    return Finding(
        center_irc=(0, 0, 0),
        center_xyz=(0, 0, 0),
        prob_nodule=prob_nodule,
        prob_malignant=prob_malignant,
        stage=stage,  # type: ignore[arg-type]
    )


def test_answers_are_counted_in_twenty_bins() -> None:
    said = profile_answers("1.2", [finding(0.0, math.nan), finding(0.04, 0.9), finding(0.97, 1.0), finding(0.5, 0.12)])
    assert (said.candidates, said.nodules) == (4, 2)
    assert {place: n for place, n in enumerate(said.prob_nodule) if n} == {0: 2, 10: 1, 19: 1}
    assert {place: n for place, n in enumerate(said.prob_malignant) if n} == {2: 1, 19: 1}
    assert profile_answers("1.2", []).prob_nodule == (0,) * 20


def test_a_kept_scan_is_read_again(tmp_path: Path) -> None:
    made, path = profile(noise((4, 64, 64), 20)), tmp_path / "below" / "1.2.json"
    assert read_scan_profile(path, "k") is None
    write_profile(path, made)
    assert read_scan_profile(path, "k") == made
    assert read_scan_profile(path, "other voxels") is None


@pytest.mark.parametrize(("name", "value"), [("version", 0), ("values", {"slices": 3}), ("series_uid", 5)])
def test_what_is_not_whole_is_made_again(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "1.2.json"
    write_profile(path, profile(noise((4, 64, 64), 20)))
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    assert read_scan_profile(path, "k") is None
    path.write_text("{")
    assert read_scan_profile(path, "k") is None


def test_a_kept_bundle_is_read_strictly(tmp_path: Path) -> None:
    path, one = tmp_path / "luna-3.json", profile(noise((4, 64, 64), 20))
    answers = (profile_answers("1.3", [finding(0.9, 0.2)]),)
    made = BundleProfile(bundle="models:/luna/3", train=(one,), held_out=(), answers=answers)
    assert read_bundle_profile(path) is None
    write_profile(path, made)
    assert read_bundle_profile(path) == made
    path.write_text(path.read_text().replace('"held_out"', '"held"'))
    with pytest.raises(ProfileError, match=r"luna-3\.json: it cannot be read .*held.*; delete it"):
        read_bundle_profile(path)
