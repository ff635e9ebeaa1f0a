"""The page tells what was seen and nothing of the machine's folders."""

from __future__ import annotations

import json

import pytest

from tests.drills import run
from tests.drills.catalogue import Drill, all_drills
from tests.drills.page import Result, Step, Verdict, page, verdict_of, without_folders
from tests.drills.programs import CannotRun, DrillError
from tests.drills.run import play

GOOD = Step(did="killed it", saw="it came back", seconds=3.4)
BAD = Step(did="killed it | twice", saw="nothing", problems=("2 MLflow runs stay RUNNING",), seconds=61.0)


def result(name: str, verdict: Verdict, *steps: Step, why: str = "") -> Result:
    seconds = sum(step.seconds for step in steps)
    about = f"About {name}."
    return Result(name=name, title=f"a {name}", about=about, verdict=verdict, steps=steps, seconds=seconds, why=why)


@pytest.mark.parametrize(
    ("steps", "verdict"), [([], "not run"), ([GOOD], "passed"), ([GOOD, BAD], "failed"), ([BAD, GOOD], "failed")]
)
def test_one_problem_is_enough(steps: list[Step], verdict: str) -> None:
    assert verdict_of(steps) == verdict


def test_every_drill_has_its_row_and_its_story() -> None:
    done = [
        result("kill", "passed", GOOD),
        result("reboot", "failed", GOOD, BAD),
        result("disk", "not run", why="no namespaces here"),
        result("hang", "not run"),
    ]
    text = page(done, {"machine": "two cores"})
    lines = text.splitlines()
    assert "* drills: 1 passed, 1 failed, 2 not run; 68 s in all" in lines
    assert "| [kill](#kill) | a kill | passed | 3 |  |  |" in lines
    assert "| [reboot](#reboot) | a reboot | **failed** | 64 |  |  |" in lines
    assert "| [hang](#hang) | a hang | **not run** |  |  |  |" in lines
    assert "| killed it \\| twice | nothing<br>**2 MLflow runs stay RUNNING** | 61 |" in lines
    assert "Not run: no namespaces here." in lines
    assert "Not run this time." in lines
    assert "* machine: two cores" in lines


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/tmp/a/home/scans/1.2.zarr: No space left on device", "1.2.zarr: No space left on device"),
        ("cannot open sqlite:////tmp/a/mlflow.db here", "cannot open mlflow.db here"),
        ("file:///tmp/a/m-1/weights", "weights"),
        ("http://127.0.0.1:4200/api/health answers", "http://127.0.0.1:4200/api/health answers"),
        ("models:/luna/1 and models:/m-12 and 3/4", "models:/luna/1 and models:/m-12 and 3/4"),
        ("'/tmp/a/b.csv'", "'b.csv'"),
        ("read `/tmp/a/b.csv`<br>", "read `b.csv`<br>"),
    ],
)
def test_folders_are_left_out(said: str, told: str) -> None:
    assert without_folders(said) == told


def drill(*steps: Step | Exception) -> Drill:
    def story(_scene: object) -> object:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield step

    return Drill(name="x", title="an x", about="About x.", play=story)  # type: ignore[arg-type]


def test_a_drill_that_breaks_off_keeps_what_it_saw() -> None:
    said: list[str] = []
    done = play(drill(GOOD, DrillError("it ended\nbefore its time")), None, said.append)  # type: ignore[arg-type]
    assert done.verdict == "failed"
    assert [step.did for step in done.steps] == ["killed it", "the next step"]
    assert done.steps[1].problems == ("it ended before its time",)
    assert any("WRONG: it ended before its time" in line for line in said)


def test_a_drill_that_cannot_be_is_not_run() -> None:
    done = play(drill(CannotRun("no namespaces here")), None, str)  # type: ignore[arg-type]
    assert (done.verdict, done.why, done.steps) == ("not run", "no namespaces here", ())


def test_an_error_of_the_drill_itself_is_no_verdict() -> None:
    with pytest.raises(KeyError):
        play(drill(GOOD, KeyError("a mistake of ours")), None, str)  # type: ignore[arg-type]


def test_results_come_back_from_json() -> None:
    done = result("reboot", "failed", GOOD, BAD)
    assert run._result(json.loads(json.dumps(run.asdict(done)))) == done


def test_names_are_unique_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    names = [drill.name for drill in all_drills()]
    assert len(set(names)) == len(names) == 14
    assert all(drill.about.endswith((".", "done.")) for drill in all_drills())
    with pytest.raises(SystemExit):
        run.main(["reboot", "flood"])
    assert "no such drill: flood" in capsys.readouterr().err
