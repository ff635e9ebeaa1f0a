"""The benchmark measures, and says no when the answers differ; how fast anything is, is not tested."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest

from lungml.findings import Finding
from tests.benchmarks import crop_path, run
from tests.benchmarks.growth import explained
from tests.benchmarks.measure import compare, further_than, skipped, unequal
from tests.benchmarks.networks import _other_findings


def test_a_cheap_row_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run.measure(["augment"], repeats=1, full=False)
    assert [row.disagreement for row in rows] == ["", ""]
    assert all(row.ratio and row.ours_s and row.peer_s for row in rows)
    run.print_table(rows)
    assert "augment 48 crops" in capsys.readouterr().out


def test_a_peer_that_disagrees_gets_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    called = []
    row = compare(
        "stage",
        "a liar",
        lambda: np.zeros(3),
        lambda: called.append(1) or np.array([0.0, 0.0, 7.0]),
        disagree=unequal,
        repeats=3,
    )
    assert (row.ours_s, row.peer_s, row.ratio) == (None, None, None)
    assert len(called) == 1  # checked, never timed
    run.print_table([row])
    shown = capsys.readouterr().out
    assert "refused" in shown
    assert "1 of 3 values differ" in shown
    assert " x" not in shown


def test_ours_and_peer_are_timed_in_turns_after_the_check() -> None:
    order: list[str] = []
    row = compare(
        "stage",
        "peer",
        lambda: order.append("ours"),
        lambda: order.append("peer"),
        disagree=lambda *_: "",
        repeats=2,
    )
    assert order == ["ours", "peer"] * 3
    assert row.floor_s is None


def test_what_comes_before_a_side_is_called_before_each_and_is_not_timed() -> None:
    order: list[str] = []
    row = compare(
        "stage",
        "peer",
        lambda: order.append("ours"),
        lambda: order.append("peer"),
        disagree=lambda *_: "",
        before=lambda: (order.append("before"), time.sleep(0.05)),
        repeats=2,
    )
    assert order == ["before", "ours", "before", "peer"] * 3
    assert row.ours_s is not None
    assert row.ours_s < 0.05


def test_a_peer_that_is_not_installed_is_said_to_be_missing_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    crops = np.zeros((2, 32, 48, 48), np.int16)
    for make in (crop_path.fanout_cache, crop_path.persistent_dataset):
        assert make(tmp_path / "none", crops).read is None
    row = skipped("stage", "a library", crop_path.NOT_INSTALLED)
    monkeypatch.setattr(run, "measure", lambda *_, **__: [row])
    assert run.main([]) == 0
    assert "skipped" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["diskcache", "monai"])
def test_peers_hold_the_crops_that_they_are_given(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    make = crop_path.fanout_cache if name == "diskcache" else crop_path.persistent_dataset
    crops = np.arange(12, dtype=np.int16).reshape(3, 2, 2)
    np.testing.assert_array_equal(make(tmp_path / name, crops).batch(np.array([2, 0])), crops[[2, 0]])


def test_a_tolerance_does_not_let_nan_or_another_shape_pass() -> None:
    check = further_than(0.1, "HU")
    assert check(np.zeros(2), np.full(2, 0.05)) == ""
    assert "0.2 HU" in check(np.zeros(2), np.full(2, 0.2))
    assert check(np.zeros(2), np.array([0.0, np.nan]))
    assert check(np.zeros(2), np.zeros(3))


def test_every_row_has_a_name() -> None:
    assert tuple(run.all_rows()) == run.ROW_NAMES


def test_a_refused_row_makes_the_command_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused = compare("stage", "a liar", lambda: 1, lambda: 2, disagree=unequal, repeats=1)
    monkeypatch.setattr(run, "measure", lambda *_, **__: [refused])
    assert run.main(["--json", str(tmp_path / "bench.json")]) == 1
    assert '"ratio": null' in (tmp_path / "bench.json").read_text()


def test_a_straight_line_explains_what_is_straight_and_not_what_is_not() -> None:
    assert explained([1, 2, 4], [3.0, 5.0, 9.0]) == pytest.approx(1)
    # The line through (0, 0), (1, 1), (2, 0) is the mean: it explains nothing.
    assert explained([0, 1, 2], [0.0, 1.0, 0.0]) == pytest.approx(0)


def test_findings_that_differ_are_told_from_those_that_were_not_asked() -> None:
    def finding(place: float, nodule: float, malignant: float) -> Finding:
        center = (place, 0.0, 0.0)
        stage = "benign" if nodule >= 0.5 else "filtered"
        return Finding(center_irc=center, center_xyz=center, prob_nodule=nodule, prob_malignant=malignant, stage=stage)

    peer = np.array([[5.0, 0, 0, 0.9, 0.2], [9.0, 0, 0, 0.1, 0.7]])
    alike = (finding(5.1, 0.9, 0.2), finding(9.0, 0.1, math.nan))
    assert _other_findings(alike, peer) == ""
    for wrong in (
        (alike[0],),  # one is missing
        (*alike, finding(20.0, 0.1, math.nan)),  # one too many
        (finding(5.6, 0.9, 0.2), alike[1]),  # elsewhere
        (finding(5.0, 0.8, 0.2), alike[1]),
        (finding(5.0, 0.9, 0.3), alike[1]),
        (finding(5.0, 0.9, math.nan), alike[1]),  # malignancy was not asked of a nodule
        (),
    ):
        assert _other_findings(wrong, peer)
