"""What Prefect costs is measured in runs that really went through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.orchestration import Cost, measured, row


def cost(runs: int, wall_s: float) -> Cost:
    tables = {"events": 0.6, "task_run": 0.4}
    return Cost(scans=8, runs=runs, wall_s=wall_s, own_cpu_s=0.04, server_cpu_s=0.12, bytes_a_run=2048, tables=tables)


def test_a_row_says_what_batches_save_and_what_a_task_run_costs() -> None:
    line = row(cost(8, 0.4), cost(2, 0.1), 4, served=False)
    assert line.ratio == pytest.approx(0.25)
    assert "ours: 50 ms a task run, 20 ms of processor, database 2.0 kB, 60% of it events" in line.note
    assert "peer: 50 ms a task run, 80 ms of processor" in line.note


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "runs"), [(1, 10), (4, 4)])
def test_every_scan_is_a_task_run_or_in_one_and_the_database_grows(tmp_path: Path, batch: int, runs: int) -> None:
    found = measured(tmp_path / "prefect", scans=5, batch=batch, served=False, stages=2)
    assert (found.scans, found.runs) == (5, runs)
    assert found.wall_s > 0
    assert found.server_cpu_s > 0
    assert 1_000 < found.bytes_a_run < 1_000_000
    assert {"events", "task_run_state"} <= set(found.tables)
    assert sum(found.tables.values()) <= 1.0001
