"""A flow's body between `@flow` and its function: how it fails, and that Prefect still sees the function's face."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.logging.handlers import APILogHandler
from prefect.states import State
from prefect.testing.utilities import prefect_test_harness

from flows import watched as module
from flows.end_to_end import end_to_end
from flows.evaluate import evaluate_bundles
from flows.prepare import prepare
from flows.settings import LIBRARY, hear_the_library
from flows.train import train_stage
from flows.watched import watched
from lungml.errors import TrainingError
from lungml.home import Home
from tasks.in_use import alone


@watched
def body(path: Path, many: int = 1) -> str:
    """Fails as it is told."""
    if many == 0:
        raise ZeroDivisionError
    if many < 0:
        raise TrainingError("too few scans; give more")
    return str(path) * many


@pytest.fixture
def in_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUNA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module.FlowRunContext, "get", lambda: object())
    monkeypatch.setattr(module, "hear_the_library", lambda: None)


def test_what_can_be_mended_is_the_states_message_alone(in_a_run: None) -> None:
    state = body(Path("a"), -1)
    assert isinstance(state, State)
    assert state.is_failed()
    assert state.message == "too few scans; give more"
    assert isinstance(state.data, TrainingError)


def test_anything_else_passes_through(in_a_run: None) -> None:
    assert body(Path("a"), 2) == "aa"
    with pytest.raises(ZeroDivisionError):
        body(Path("a"), 0)


def test_a_home_is_in_use_until_its_outermost_run_has_ended(in_a_run: None) -> None:
    def is_free() -> bool:
        with alone(Home.from_env()) as free:
            return free

    @watched
    def inner() -> bool:
        return is_free()

    @watched
    def outer() -> list[bool]:
        return [is_free(), inner(), is_free()]

    assert is_free()
    assert outer() == [False, False, False]
    assert is_free()


def test_outside_a_run_nothing_is_changed() -> None:
    with pytest.raises(TrainingError):
        body(Path("a"), -1)


def test_annotations_are_types_wherever_they_are_read() -> None:
    shown = inspect.signature(body)
    assert shown.parameters["path"].annotation is Path
    assert (body.__name__, body.__doc__) == ("body", "Fails as it is told.")


@pytest.mark.parametrize("one", [end_to_end, prepare, train_stage, evaluate_bundles])
def test_the_form_in_the_ui_knows_every_parameter(one: object) -> None:
    schema = one.parameters.model_dump()  # type: ignore[attr-defined]
    names = set(inspect.signature(one.fn).parameters)  # type: ignore[attr-defined]
    assert set(schema["properties"]) == names
    assert schema["properties"]["luna_dir"]["description"].startswith("holds `**/<series_uid>.mhd`")


def test_the_library_is_heard_once_and_at_info(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = APILogHandler()
    monkeypatch.setattr(logging.getLogger("prefect.extra"), "handlers", [logging.NullHandler(), handler])
    for name in LIBRARY:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    logging.getLogger("tasks").setLevel(logging.ERROR)  # a person's own
    hear_the_library()
    hear_the_library()
    assert [logging.getLogger(name).handlers for name in LIBRARY] == [[handler]] * len(LIBRARY)
    assert logging.getLogger("lungml.fit").isEnabledFor(logging.INFO)
    assert logging.getLogger("tasks").level == logging.ERROR
    logging.getLogger("tasks").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.mark.slow
def test_the_caller_gets_the_error_and_its_own_message(server: None) -> None:
    @flow(name="inner")
    @watched
    def inner() -> None:
        raise TrainingError("too few scans; give more")

    @flow(name="outer")
    @watched
    def outer() -> None:
        inner()

    with pytest.raises(TrainingError, match="too few scans; give more"):
        outer()
    assert outer(return_state=True).message == "too few scans; give more"
