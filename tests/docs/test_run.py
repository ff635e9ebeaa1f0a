"""`make docs`: what is run, how it is told, and that nothing of it stays or touches anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import run as module
from tests.docs.plan import STEPS, Step, fill
from tests.docs.run import Outcome, Runner, chosen, first_lines, line_of, main
from tests.docs.stage import Place
from tests.drills.programs import living

PYTHON = "python -c"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.code.mkdir()
    return place


@pytest.fixture
def runner(place: Place) -> Runner:
    return Runner(place)


def say(code: str, **more: object) -> Step:
    return Step(command=f'{PYTHON} "{code}"', **more)  # type: ignore[arg-type]


def test_each_command_is_told_with_its_verdict(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [say("print(1)"), say("print('why'); raise SystemExit(3)"), say("print(2)", says="3")]
    outcomes = module.play(steps, place, print)
    assert [bool(outcome.problem) for outcome in outcomes] == [False, True, True]
    said = capsys.readouterr().out
    assert said.startswith("ok ")
    assert "ended with status 3\n      why" in said
    assert "does not say '3'\n      2" in said


def test_a_status_may_be_wanted(runner: Runner) -> None:
    assert not runner.run(say("raise SystemExit(1)", status=1)).problem


def test_what_one_says_another_may_use(runner: Runner, place: Place) -> None:
    assert not runner.run(say("print('models:/m-7f')", keeps={"unet": r"(models:/m-\w+)"})).problem
    assert not runner.run(
        say("print('WHAT')", places={"print('WHAT')": "\"print('{unet}')\""}, says="models:/m-7f")
    ).problem
    again = Place(place.folder)
    assert "unet" not in again.known
    again.keep({})
    assert again.kept() == {"unet": "models:/m-7f"}


def test_what_is_not_known_is_no_command(runner: Runner) -> None:
    assert "not known yet" in runner.run(say("print('{unet}')")).problem


def test_what_is_not_said_is_told(runner: Runner) -> None:
    assert "says nothing like" in runner.run(say("print(1)", keeps={"unet": "(m-.)"})).problem


def test_the_background_ends_with_the_others(runner: Runner, place: Place) -> None:
    endless = "import time; print('ready', flush=True)\ntry: time.sleep(600)\nexcept KeyboardInterrupt: pass"
    assert not runner.run(say(endless, ready="ready")).problem
    assert len(living(place.mark)) == 1
    assert runner.close() == []
    assert not living(place.mark)


def test_one_that_never_is_ready_is_told(runner: Runner) -> None:
    assert "ended before it was ready" in runner.run(say("print('no')", ready="yes")).problem
    assert len(runner.close()) <= 1


def test_a_command_knows_this_home_and_nothing_of_the_users(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "LUNA_SCANS", "PREFECT_HOME"):
        monkeypatch.setenv(name, "theirs")
    env = place.env(LUNA_WORKERS="dask:2")
    assert "theirs" not in env.values()
    assert env["LUNA_WORKERS"] == "dask:2"
    assert {Path(env[name]).is_relative_to(place.folder) for name in ("HOME", "LUNA_HOME", "PYTHONPATH")} == {True}


def test_words_are_filled_in(place: Place) -> None:
    step = Step(
        command="A=one luna x --luna-dir /data/LUNA16 --reuse a=models:/m-... 'b c' [--more N]",
        places={"one": "two", "models:/m-...": "{unet}", "N": "1 2"},
        also="--set {unet}",
    )
    place.known["unet"] = "models:/m-1"
    assert place.words(step) == (
        {"A": "two"},
        ["luna", "x", "--luna-dir", str(place.known["scans"]), "--reuse", "a=models:/m-1", "b c", "--more", "1", "2",
         "--set", "models:/m-1"],
    )  # fmt: skip


def test_only_known_names_are_filled_in() -> None:
    assert fill('{"a": {b}, {c}}', {"b": 1}) == '{"a": 1, {c}}'


def test_a_long_output_is_cut() -> None:
    lines = first_lines("\n".join(f"line {n}\n" for n in range(40))).splitlines()
    assert len(lines) == module.SHOWN_LINES + 1
    assert lines[-1].strip() == "..."


def test_a_line_tells_seconds_and_command() -> None:
    assert line_of(Outcome(step=Step(command="luna status"), seconds=1.25)) == "ok        1.2 s  luna status"


def test_some_commands_are_chosen_by_what_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(STEPS, []) == list(STEPS)
    assert {step.command.split()[1] for step in chosen(STEPS, ["luna model"])} == {"model"}
    assert main(["--list", "luna status"]) == 0
    assert capsys.readouterr().out == "luna status\n"
    with pytest.raises(SystemExit):
        main(["no such command"])
