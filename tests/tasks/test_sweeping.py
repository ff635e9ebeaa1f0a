"""What nothing needs any more goes, what is needed stays, and a run after a sweep ends as if there had been none."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungml import findings as finding
from lungml import groups
from lungml.candidates import GroupingSettings
from lungml.errors import FileError, LunaError
from lungml.files import beside_path, locked, this_machine
from lungml.home import Home
from lungml.marked import Marked
from lungml.recipes.data import PreparedScan
from lungml.sampling import NegativePlan
from tasks import registry, sweeping, unneeded
from tasks.data import build_mask, cache_crops, convert_scan
from tasks.finding import FoundScan, NamedBundle, find_nodules
from tasks.in_use import using
from tasks.pipeline import Pipeline
from tasks.promotion import promote
from tasks.sweeping import sweep_home
from tasks.truth import ScanTruth
from tasks.unneeded import DAY_S, SweepRules, Unneeded, survey
from tests.killing import killed_at
from tests.tasks.outcomes import done, kept
from tests.tasks.toy_bundles import forget_aliases, toy_fields

RULES = SweepRules(days=14, keep=1)
KEY = "0123456789abcdef01234567"


def later(days: float) -> float:
    """A moment so many days from now."""
    return time.time() + days * DAY_S


def aged(path: Path, days: float = 100) -> Path:
    """A folder or file, and all that is in it, as if nobody had touched it since."""
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        os.utime(one, (time.time() - days * DAY_S,) * 2, follow_symlinks=False)
    return path


def files(home: Home) -> dict[str, bytes]:
    """Every file that is no lock, with its bytes."""
    return {
        str(path.relative_to(home.root)): path.read_bytes()
        for path in sorted(home.root.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock") and "mlflow.db" not in path.name
    }


def named(entries: tuple[Unneeded, ...]) -> list[tuple[str, str, int]]:
    return [(entry.kind, str(entry.folder), entry.parts) for entry in entries]


def prepared(truth: ScanTruth, home: Home, recipe_name: str = "tiny") -> Any:
    stored = convert_scan.fn(truth, home)
    stored = stored if not hasattr(stored, "result") else stored.result()
    build_mask.fn(stored, "bounded")
    plan = NegativePlan(kind="fixed", per_scan=3)
    return cache_crops.fn(
        stored, home, recipe_name=recipe_name, rule="bounded", negatives=plan, negative_slabs_per_scan=1, seed=0
    )


@pytest.fixture
def bare(tmp_path: Path) -> Home:
    """A home in which MLflow has nothing yet."""
    return Home(tmp_path / "artifacts")


# Crops


def test_crops_that_no_run_looked_at_go_and_are_made_again_the_same(tmp_path: Path, toy: Any, bare: Home) -> None:
    truths = [toy(tmp_path / "luna16", f"1.{n}", "train", n) for n in range(2)]
    scans = [done(prepared(truth, bare)) for truth in truths]
    before, folder = files(bare), scans[0].crops.parent
    assert survey(bare, RULES).entries == ()
    aged(folder)
    (entry,) = survey(bare, RULES).entries
    assert named((entry,)) == [("crops", f"crops/{folder.name}", 2)]
    assert entry.size_bytes == sum(len(data) for name, data in before.items() if name.startswith("crops/"))
    assert kept(prepared(truths[0], bare)) == scans[0]  # a run that finds them useful
    assert named(survey(bare, RULES).entries) == [("crops", f"crops/{folder.name}", 1)]
    swept = sweep_home(bare, RULES, now=later(15))
    assert (swept.left, list(bare.crops.iterdir())) == ((), [])
    assert [done(prepared(truth, bare)) for truth in truths] == scans
    assert files(bare) == before


def test_crops_of_other_settings_stay(tmp_path: Path, toy: Any, bare: Home) -> None:
    truth = toy(tmp_path / "luna16", "1.0")
    one, other = (done(prepared(truth, bare, name)) for name in ("one", "other"))
    aged(one.crops)
    sweep_home(bare, RULES)
    assert not one.crops.parent.exists()
    assert groups.find_damage(other.crops) == ""


def test_crops_stay_while_anything_is_trained(tmp_path: Path, toy: Any, bare: Home) -> None:
    crops = aged(done(prepared(toy(tmp_path / "luna16", "1.0"), bare)).crops)
    state = bare.checkpoints / "segmentation" / KEY
    state.mkdir(parents=True)
    with locked(state):
        swept = sweep_home(bare, RULES)
    assert swept.size_bytes == 0
    assert swept.left == (f"crops/{crops.parent.name}: segmentation/{KEY} is being trained and may use it",)
    assert groups.find_damage(crops) == ""


def test_what_a_run_is_about_to_put_there_is_waited_for(tmp_path: Path, toy: Any, bare: Home) -> None:
    crops = aged(done(prepared(toy(tmp_path / "luna16", "1.0"), bare)).crops)
    with locked(crops.parent / ".groups"):
        assert sweep_home(bare, RULES).left == (f"crops/{crops.parent.name}: in use",)
    assert groups.find_damage(crops) == ""
    assert sweep_home(bare, RULES).left == ()
    assert not crops.parent.exists()


# A run at work


def test_nothing_goes_while_a_run_works_on_the_home(tmp_path: Path, toy: Any, bare: Home) -> None:
    crops = aged(done(prepared(toy(tmp_path / "luna16", "1.0"), bare)).crops)
    with using(bare), using(bare), pytest.raises(FileError, match="a run works on it; sweep when it has ended"):
        sweep_home(bare, RULES)
    assert groups.find_damage(crops) == ""
    sweep_home(bare, RULES)
    assert not crops.exists()


# Trainings


def training(home: Home, *names: str, key: str = KEY) -> Path:
    folder = home.checkpoints / "malignancy" / key
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)
    return folder


def test_the_state_of_a_training_goes_when_nobody_went_on_with_it_for_long(bare: Home) -> None:
    folder = training(bare, "job.json", "last.pt", "best-3.pt", "mlflow-run.json", "parent.safetensors")
    sweep_home(bare, RULES)
    aged(folder)
    os.utime(folder / "last.pt", (later(-13),) * 2)
    sweep_home(bare, RULES)
    assert len(list(folder.iterdir())) == 5
    assert named(sweep_home(bare, RULES, now=later(2)).survey.entries) == [
        ("trainings", f"checkpoints/malignancy/{KEY}", 1)
    ]
    assert not folder.exists()


def test_a_training_that_only_waits_to_be_logged_stays(bare: Home) -> None:
    folder = aged(training(bare, "job.json", "best-3.pt", "mlflow-run.json", "result.json", "best.safetensors"))
    assert sweep_home(bare, RULES).survey.entries == ()
    assert len(list(folder.iterdir())) == 5


def test_of_a_finished_training_only_a_left_over_state_goes(bare: Home) -> None:
    states = ("job.json", "last.pt", "best-3.pt", "result.json", "best.safetensors")
    folder = aged(training(bare, *states, "finished.json", "figures/worst_missed.png"))
    assert sweep_home(bare, RULES).size_bytes == 5000
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "figures", "figures/worst_missed.png", "finished.json",
    ]  # fmt: skip
    assert survey(bare, RULES).entries == ()


def test_a_training_that_runs_is_left_alone_however_quiet_it_is(bare: Home) -> None:
    folder = aged(training(bare, "job.json", "last.pt"))
    with locked(folder):
        assert sweep_home(bare, RULES).left == (f"checkpoints/malignancy/{KEY}: in use",)
    assert (folder / "last.pt").exists()


# Answers


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    """Bundles 1 to 3 of synthetic scans, of the same models."""
    home = new_home(tmp_path_factory.mktemp("sweeping"))
    fields = toy_fields(home, origin="phantom")
    for most in (10, 11, 12):  # candidates
        grouping = asdict(GroupingSettings(rule="report", max_candidates=most))
        registry.register_bundle(home, {**fields, "grouping": grouping})
    return home


@pytest.fixture
def home(stocked: Home) -> Home:
    forget_aliases(stocked)
    return stocked


@pytest.fixture
def marking(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The segmenter marks one box of 27 voxels, and is counted."""
    calls: list[str] = []

    def segment(hu: np.ndarray, models: Any, **_: Any) -> Marked:
        calls.append("segment")
        mask = np.zeros(hu.shape, dtype=bool)
        mask[7:10, 13:16, 13:16] = True
        return Marked.of_mask(mask)

    monkeypatch.setattr(finding, "segment", segment)
    return calls


def asked(home: Home, scan: PreparedScan, number: int) -> Any:
    pipeline = Pipeline(home=home, pipeline_id="p", origin="phantom", seed=0, device="cpu")
    return find_nodules.fn(scan, NamedBundle.of(home, f"models:/luna/{number}"), pipeline)


def test_answers_of_bundles_in_use_and_of_the_latest_stay_and_others_are_asked_again_the_same(
    toy: Any, home: Home, marking: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = prepared(toy(home.root / "luna16", "1.0", "val"), home)
    scan = scan if isinstance(scan, PreparedScan) else scan.result()
    found: list[FoundScan] = [done(asked(home, scan, number)) for number in (1, 2, 3)]
    promote(home, "models:/luna/1", "demo", "a test")
    before = files(home)
    assert survey(home, RULES).entries == ()
    for place in ("answers", "findings"):
        aged(home.reports / place)
    second = {("answers", str(found[1].answers.parents[1].relative_to(home.root)), 1)}
    second |= {("findings", str(found[1].findings.parents[1].relative_to(home.root)), 1)}
    assert set(named(survey(home, RULES).entries)) == second
    assert survey(home, SweepRules(keep=2)).entries == ()
    assert {entry.folder.name for entry in survey(home, SweepRules(keep=0)).entries} == {
        one.parents[1].name for file in found[1:] for one in (file.answers, file.findings)
    }
    swept = sweep_home(home, RULES)
    assert (swept.left, swept.size_bytes) == ((), sum(entry.size_bytes for entry in swept.survey.entries))
    assert not found[1].answers.parents[1].exists()
    assert not found[1].findings.parents[1].exists()
    marking.clear()
    assert [kept(asked(home, scan, number)) for number in (1, 3)] == [found[0], found[2]]
    assert marking == []
    assert done(asked(home, scan, 2)) == found[1]
    assert marking == ["segment"]
    again = files(home)
    # An .npz holds the time at which it was written: it is what is in it that counts.
    assert again.keys() == before.keys()
    assert {name for name in before if again[name] != before[name]} <= {
        str(file.relative_to(home.root)) for file in (found[1].answers, found[1].annotated)
    }
    for name, value in vars(found[1].read()[0].candidates).items():
        np.testing.assert_array_equal(value, getattr(found[1].read()[0].candidates, name))


def test_where_the_bundles_are_not_known_all_answers_stay(
    home: Home, bare: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(home.reports, ignore_errors=True)
    for place in (home, bare):
        folder = place.reports / "answers" / KEY / "1.0"
        folder.mkdir(parents=True)
        (folder / "answers.npz").write_bytes(b"x")
        aged(folder.parent)
    assert named(survey(home, RULES).entries) == [("answers", f"reports/answers/{KEY}", 1)]
    assert survey(bare, RULES).entries == ()
    assert survey(bare, RULES).notes == ("no bundle is registered here: all answers and findings are kept",)
    with monkeypatch.context() as patch:
        patch.setattr(unneeded, "mlflow_answers", lambda uri: False)
        silent = survey(home, RULES)
    assert (silent.entries, len(silent.notes)) == ((), 1)
    assert "MLflow does not answer" in silent.notes[0]

    def refuse(home: Home) -> None:
        raise RuntimeError("another schema\nof tables")

    with monkeypatch.context() as patch:
        patch.setattr(unneeded, "list_bundles", refuse)
        refused = survey(home, RULES)
    assert refused.entries == ()
    assert r"cannot be read (another schema\nof tables)" in refused.notes[0]


# What is not ours, and where links lead


def test_what_a_person_put_there_stays_with_what_is_beside_it(tmp_path: Path, toy: Any, bare: Home) -> None:
    crops = done(prepared(toy(tmp_path / "luna16", "1.0"), bare)).crops
    (crops / "note.txt").write_text("look at this one")
    theirs = [
        crops,
        training(bare, "last.pt", "my-weights.pt"),
        training(bare, "last.pt", key="my-experiment"),
        bare.root / "notes" / "paper.txt",
        bare.reports / "evaluations" / "k" / "report.html",
        bare.root / ".hidden",
        bare.mlruns / f".a.{this_machine()}-999999999-0a1b2c3d",
        bare.root / "corrections" / "000001.json",
    ]
    for path in theirs:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    aged(bare.root)
    before = files(bare)
    assert survey(bare, RULES).entries == ()
    assert sweep_home(bare, RULES).size_bytes == 0
    assert files(bare) == before


def test_no_link_leads_the_sweep_out_of_the_home(tmp_path: Path, toy: Any, bare: Home) -> None:
    outside = tmp_path / "outside"
    crops = done(prepared(toy(tmp_path / "luna16", "1.0"), bare)).crops
    # All crops elsewhere; one training's state elsewhere; a link within another's; a hidden name that is one.
    shutil.move(bare.crops, outside / "crops")
    bare.crops.symlink_to(outside / "crops")
    shutil.move(training(bare, "last.pt"), outside / "state")
    (bare.checkpoints / "malignancy" / KEY).symlink_to(outside / "state")
    inner = training(bare, "last.pt", key=KEY[::-1])
    (inner / "best-1.pt").symlink_to(outside / "state" / "last.pt")
    (bare.root / f".x.{this_machine()}-999999999-0a1b2c3d").symlink_to(outside)
    bare.reports.symlink_to(outside / "crops" / crops.parent.name)
    for place in (outside, bare.root):
        aged(place)
    there = sorted(str(path) for path in outside.rglob("*"))
    swept = sweep_home(bare, RULES)
    assert swept.survey.entries == ()
    assert [note for note in swept.survey.notes if "is a link" in note] == [
        f"{place} is a link, or no folder: what lies there is left alone" for place in (bare.crops, bare.reports)
    ]
    assert sorted(str(path) for path in outside.rglob("*")) == there


def test_what_became_a_link_since_it_was_looked_at_is_left_alone(
    tmp_path: Path, bare: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = aged(training(bare, "last.pt"))
    looked = survey(bare, RULES)
    shutil.move(folder, tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    monkeypatch.setattr(sweeping, "survey", lambda home, rules, now: looked)
    swept = sweep_home(bare, RULES)
    assert swept.left == (f"checkpoints/malignancy/{KEY}: a link leads there by now",)
    assert (tmp_path / "outside" / "last.pt").exists()


def test_a_home_that_is_a_link_itself_is_swept(tmp_path: Path, bare: Home) -> None:
    aged(training(bare, "last.pt"))
    (tmp_path / "link").symlink_to(bare.root)
    assert sweep_home(Home(tmp_path / "link"), RULES).size_bytes == 1000


# Half-written


def test_what_killed_processes_left_goes_at_once_of_other_machines_when_it_is_old(bare: Home) -> None:
    dead, other = f"{this_machine()}-999999999-0a1b2c3d", "abcdef-12-0a1b2c3d"
    assert not this_machine().startswith("abcdef")
    for place in (bare.root, bare.crops / "a.zarr", bare.checkpoints / "malignancy" / KEY, bare.reports / "gate" / "x"):
        place.mkdir(parents=True, exist_ok=True)
        (place / f".b.{dead}").write_bytes(b"12345")
    whole = bare.crops / f".c.{other}"
    (whole / "crops").mkdir(parents=True)
    mine = beside_path(bare.root / "now")
    mine.write_bytes(b"1")
    swept = sweep_home(bare, RULES)
    assert named(swept.survey.entries) == [
        ("half-written", ".", 1),
        ("half-written", f"checkpoints/malignancy/{KEY}", 1),
        ("half-written", "crops/a.zarr", 1),
        ("half-written", "reports/gate/x", 1),
    ]
    assert swept.size_bytes == 20
    assert whole.exists()
    assert mine.exists()
    sweep_home(bare, RULES, now=later(15))
    assert not whole.exists()


def test_what_one_sweep_removes_another_that_begins_meanwhile_leaves_to_it(
    bare: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bare.checkpoints / "malignancy" / KEY
    folder.mkdir(parents=True)
    (folder / "job.json").write_bytes(b"12345")
    aged(bare.checkpoints)
    real, second = sweeping._delete, list[Any]()

    def meanwhile(*given: Any) -> bool:
        second.append(sweep_home(bare, RULES).survey.entries)
        return real(*given)

    monkeypatch.setattr(sweeping, "_delete", meanwhile)
    first = sweep_home(bare, RULES)
    assert second == [()]
    assert (first.size_bytes, first.left) == (5, ())


# Killed, refused


class Killed(BaseException):
    """Nothing in a sweep cleans up behind it, so that it ends as if its process had been killed."""


def kill_sweep() -> None:
    raise Killed


def killed_sweep(moment: int, patch: pytest.MonkeyPatch) -> None:
    """Let the next sweep end at its so manieth new name or deletion, see `Killed`."""
    counted = killed_at(moment, kill_sweep)
    patch.setattr(Path, "rename", counted(Path.rename))
    for name in ("unlink", "rmdir"):
        patch.setattr(os, name, counted(getattr(os, name)))


def test_a_sweep_that_is_killed_leaves_whole_things_or_hidden_ones(bare: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> dict[str, int]:
        keys = [f"{KEY[:-1]}{digit}" for digit in "012"]
        return {aged(training(bare, "last.pt", "best-1.pt", key=key)).name: 2 for key in keys}

    place, moments = bare.checkpoints / "malignancy", 0
    for moment in range(1, 100):
        whole = make()
        with monkeypatch.context() as patch:
            killed_sweep(moment, patch)
            with suppress(Killed):
                sweep_home(bare, RULES)
                break
        moments += 1
        there = {path.name: len(list(path.iterdir())) for path in place.iterdir() if path.is_dir()}
        seen = {name: count for name, count in there.items() if not name.startswith(".")}
        assert seen.items() <= whole.items()
        assert all(unneeded.HALF_WRITTEN.fullmatch(name) for name in there.keys() - seen.keys())
        with monkeypatch.context() as patch:
            patch.setattr(unneeded, "is_dead", lambda made: True)  # this one, whose number they bear
            sweep_home(bare, RULES)
        assert [path for path in place.iterdir() if path.is_dir()] == []
    assert moments == 12  # three new names, and three times two files and their folder


def test_what_cannot_be_removed_is_said_and_the_rest_goes(bare: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (aged(training(bare, "last.pt", key=key)) for key in (KEY, KEY[::-1]))
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == one:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    swept = sweep_home(bare, RULES)
    assert (swept.left, swept.size_bytes) == ((f"checkpoints/malignancy/{KEY}: Permission denied",), 1000)
    assert [one.exists(), other.exists()] == [True, False]


def test_rules_that_would_take_what_is_in_use_cannot_be_given() -> None:
    for given in ({"days": 0}, {"keep": -1}):
        with pytest.raises(LunaError, match="give at least 1 and 0"):
            SweepRules(**given)


def test_an_empty_home_has_nothing_to_sweep(bare: Home) -> None:
    assert survey(bare, RULES).entries == ()
    assert not bare.root.exists()
    assert json.dumps(sweep_home(bare, RULES).left) == "[]"
