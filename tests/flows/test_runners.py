"""LUNA_WORKERS is read when scans are submitted, and what is wrong with it is said at once."""

from __future__ import annotations

import pickle
import socket
import time

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from flows import runners
from flows.prepare import prepare
from flows.runners import MappedRunner, WorkersError


def test_nothing_is_looked_at_before_the_first_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_WORKERS", "many")
    assert isinstance(prepare.task_runner, MappedRunner)
    with prepare.task_runner.duplicate() as runner, pytest.raises(WorkersError, match="LUNA_WORKERS is 'many'"):
        runner.map(None, {})


def test_the_chosen_runner_lives_as_long_as_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Threads(ThreadPoolTaskRunner):
        def submit(self, *args: object, **kwargs: object) -> str:  # type: ignore[override]
            assert self._started
            asked.append(args)
            return "future"

    chosen = Threads(max_workers=1)
    monkeypatch.setattr(runners, "mapped_runner", lambda: chosen)
    with MappedRunner() as runner:
        assert [runner.submit("task", {"a": 1}), runner.submit("task", {"a": 2})] == ["future", "future"]
        assert chosen._started
    assert asked == [("task", {"a": 1}), ("task", {"a": 2})]
    assert not chosen._started


def test_it_travels_with_its_flow_to_other_processes() -> None:
    assert isinstance(pickle.loads(pickle.dumps(MappedRunner())), MappedRunner)


def test_a_scheduler_that_is_not_there_is_said_at_once_and_by_name() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        started = time.monotonic()
        with pytest.raises(WorkersError, match=f"LUNA_WORKERS is {address}: no Dask scheduler answers there"):
            runners.mapped_runner(address)
    assert time.monotonic() - started < runners.ANSWER_S + 20


def test_one_that_answers_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        assert runners.mapped_runner(address).address == address  # type: ignore[attr-defined]


def test_a_port_that_is_none_is_an_address_to_mend() -> None:
    with pytest.raises(WorkersError, match="mend the address"):
        runners.mapped_runner("tcp://127.0.0.1:99999999")
