"""Mapped task runs on one bar: how often it is drawn, and that nothing depends on it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from flows import progress
from flows.progress import gather


@dataclass
class Done:
    """A future that is done when it is looked at."""

    value: Any
    name: str = "Completed"

    @property
    def state(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.name)

    def result(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@dataclass
class Watch:
    """What was shown, and how long one run takes."""

    drawn: list[tuple[float, str]]
    created: int = 0
    run_s: float = 1.0
    now: float = 0.0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen = Watch(drawn=[])

    def create(percent: float, description: str) -> str:
        seen.created += 1
        seen.drawn.append((percent, description))
        return "the bar"

    def update(artifact: str, progress: float, description: str) -> None:
        assert artifact == "the bar"
        seen.drawn.append((progress, description))

    def in_turn(futures: list[Done]) -> Iterator[Done]:
        for future in reversed(futures):  # the last is done first
            seen.now += seen.run_s
            yield future

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(progress, "update_progress_artifact", update)
    monkeypatch.setattr(progress, "as_completed", in_turn)
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("tests.progress"))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: seen.now))
    return seen


def test_results_come_in_order_and_one_bar_ends_full(watch: Watch) -> None:
    assert gather([Done("a"), Done("b"), Done("c")], "converting") == ["a", "b", "c"]
    assert watch.created == 1
    assert watch.drawn[0] == (0.0, "converting: 0 of 3 scans")
    assert watch.drawn[-1] == (100.0, "converting: 3 of 3 scans")


def test_the_bar_is_drawn_every_two_seconds_whatever_the_number_of_scans(watch: Watch) -> None:
    watch.run_s = 0.01
    gather([Done(number) for number in range(888)], "converting")  # 8.88 s
    assert len(watch.drawn) == 1 + 4 + 1
    percent, words = watch.drawn[1]
    assert percent == pytest.approx(100 * 200 / 888, abs=0.2)
    assert words.startswith("converting: 20")
    assert words.endswith("of 888 scans, 7 s left")


def test_a_slow_stage_says_how_long_it_will_take(watch: Watch) -> None:
    watch.run_s = 600.0
    gather([Done(number) for number in range(20)], "finding nodules")
    assert watch.drawn[1] == (5.0, "finding nodules: 1 of 20 scans, 3.2 h left")
    assert watch.drawn[-2] == (95.0, "finding nodules: 19 of 20 scans, 10 min left")


def test_what_was_done_before_is_counted(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    kept: Counter[str] = Counter()
    with caplog.at_level(logging.INFO):
        gather([Done(1, "Cached"), Done(2), Done(3, "Cached")], "converting", kept)
        gather([Done(1)], "cutting crops", kept)
    assert kept == {"converting": 2, "cutting crops": 0}
    assert list(kept) == ["converting", "cutting crops"]  # nought is told as well
    assert "converting: 3 of 3 scans, 2 kept from before" in caplog.text
    assert "cutting crops: 1 of 1 scans\n" in caplog.text


def test_a_scan_set_aside_is_not_told_as_done(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        gather([Done(1), Done(None), Done(3, "Cached")], "converting")
    assert "converting: 3 of 3 scans, 1 kept from before, 1 set aside" in caplog.text
    assert watch.drawn[-1] == (100.0, "converting: 3 of 3 scans, 1 kept from before, 1 set aside")


@pytest.mark.parametrize("step", ["create_progress_artifact", "update_progress_artifact"])
def test_a_bar_that_cannot_be_drawn_costs_a_line(
    step: str, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server\nis gone")

    watch.run_s = 10.0
    monkeypatch.setattr(progress, step, refuse)
    assert gather([Done(number) for number in range(5)], "converting") == [0, 1, 2, 3, 4]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        r"converting: no progress is shown: the server\nis gone"
    ]


def test_the_first_failure_ends_the_stage(watch: Watch) -> None:
    with pytest.raises(OSError, match="disk"):
        gather([Done(1), Done(OSError("disk")), Done(3)], "converting")
    assert watch.now == 2.0


def test_of_nothing_there_is_no_bar(watch: Watch) -> None:
    kept: Counter[str] = Counter()
    assert gather([], "mining candidates", kept) == []
    assert (watch.created, kept["mining candidates"]) == (0, 0)
