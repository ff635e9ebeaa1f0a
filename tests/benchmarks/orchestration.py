"""What does Prefect itself cost: time, processor and database of mapped task runs that do nothing?

`python -m tests.benchmarks.orchestration FOLDER --scans 888 --batch 1` measures in a process of its own, since Prefect
reads its settings once; the rows of `make bench` start it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from flows.settings import RECORDER
from tests.benchmarks.measure import Row, Settings

PROJECT = Path(__file__).parents[2]
SCANS, FULL_SCANS = 200, 888  # the latter are LUNA16's
BATCHES = (4, 16, 64)
SERVER_PID = "LUNA_BENCH_SERVER_PID"
QUIET_S = 6.0  # Prefect writes what happened some seconds later
WRITTEN = ("events", "log", "task_run", "task_run_state")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some scans cost that went through Prefect, and nothing was done to.

    Attributes:
        scans: how many.
        runs: task runs they made.
        wall_s: from the first submitted to the last result.
        own_cpu_s: processor seconds of the process that runs the flow meanwhile.
        server_cpu_s: those of Prefect's server, until it had written everything.
        bytes_a_run: growth of the database a task run.
        tables: table -> its share of that growth, indices counted with it.
    """

    scans: int
    runs: int
    wall_s: float
    own_cpu_s: float
    server_cpu_s: float
    bytes_a_run: float
    tables: Mapping[str, float]


def orchestration(settings: Settings) -> list[Row]:
    """Scans through Prefect one a task run, beside batches of them, once each; the floor is a loop without Prefect."""
    scans = FULL_SCANS if settings.full else SCANS
    rows = []
    for served in (False, True) if settings.full else (False,):
        costs = {
            batch: measured(settings.folder / f"{served}-{batch}", scans=scans, batch=batch, served=served)
            for batch in (1, *(BATCHES if settings.full else BATCHES[1:2]))
        }
        rows += [row(costs[1], costs[batch], batch, served) for batch in costs if batch != 1]
    return rows


def row(one: Cost, batched: Cost, batch: int, served: bool) -> Row:
    """The line of the table that says what batches would save."""
    ratio = batched.wall_s / one.wall_s
    return Row(
        stage=f"{one.scans} scans through {'a Prefect server' if served else 'Prefect, its temporary server'}",
        peer=f"{batch} scans a task run",
        ours_s=one.wall_s,
        peer_s=batched.wall_s,
        ratio=ratio,
        ratio_range=(ratio, ratio),
        floor_s=_loop_s(one.scans),
        note=f"ours: {_said(one)}; peer: {_said(batched)}",
    )


def _said(cost: Cost) -> str:
    cpu_ms = 1000 * (cost.own_cpu_s + cost.server_cpu_s) / cost.runs
    most = max(cost.tables, key=lambda name: cost.tables[name])
    return (
        f"{1000 * cost.wall_s / cost.runs:.0f} ms a task run, {cpu_ms:.0f} ms of processor, database "
        f"{cost.bytes_a_run / 1024:.1f} kB, {cost.tables[most]:.0%} of it {most}"
    )


def _loop_s(scans: int) -> float:
    start = time.perf_counter()
    for scan in [_scan(number) for number in range(scans)]:
        _ = scan
    return time.perf_counter() - start


def measured(
    folder: Path, *, scans: int, batch: int, served: bool, stages: int = 1, env: Mapping[str, str] | None = None
) -> Cost:
    """Run it in a process of its own with a database of its own.

    Args:
        folder: of Prefect's home.
        scans, batch, stages: see `main`.
        served: against `prefect server start` instead of the temporary server of the process.
        env: further variables.
    """
    folder.mkdir(parents=True)
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(folder),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "true",
        **RECORDER,
        **(env or {}),
    }
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.orchestration",
        str(folder),
        f"--scans={scans}",
        f"--batch={batch}",
    ]
    with _server(folder, variables) if served else nullcontext({}) as address:
        ended = subprocess.run(
            [*command, f"--stages={stages}"],
            env={**variables, **address},
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Cost(**json.loads(ended.stdout.splitlines()[-1]))


@contextmanager
def _server(folder: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=dict(env), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        while not _answers(f"{api}/health"):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended: {(folder / 'server.log').read_text()[-500:]}")
            time.sleep(0.5)
        yield {"PREFECT_API_URL": api, SERVER_PID: str(server.pid)}
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def _scan(number: int) -> Any:
    """A scan's record as it travels between tasks, of about 1 kB as JSON."""
    from lungml.luna import Excluded, Nodule
    from lungml.recipes.data import PreparedScan

    uid, home = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number:030d}", Path("/home/somebody/luna/artifacts")
    place = {"series_uid": uid, "center_xyz": (-100.56, 67.26, -231.81), "diameter_mm": 6.44}
    return PreparedScan(
        series_uid=uid,
        split="train",
        store=home / "scans" / f"{uid}.zarr",
        mask_name="mask_bounded",
        crops=home / "crops" / "best-0a1b2c3d.zarr" / uid,
        crops_digest="0123456789abcdef01234567",
        digest="0123456789abcdef01234567",
        nodules=(Nodule(**place, malignant=True, ratings=(4, 5, 3, 4)),),
        excluded=(Excluded(**place),) * 2,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Map a task that does nothing over some scans and print the cost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="$PREFECT_HOME")
    parser.add_argument("--scans", type=int, default=SCANS)
    parser.add_argument("--batch", type=int, default=1, help="scans a task run")
    parser.add_argument(
        "--stages", type=int, default=1, help="how often every scan is mapped over, one after the other"
    )
    options = parser.parse_args(arguments)
    print(json.dumps(asdict(_cost(options.folder, options.scans, options.batch, options.stages))))


def _cost(folder: Path, count: int, batch: int, stages: int) -> Cost:
    import psutil
    from prefect import flow, task, unmapped
    from prefect.cache_policies import NO_CACHE

    from flows.progress import gather
    from flows.runners import mapped_runner
    from lungml.home import Home
    from tasks.caching import kept

    @task(name="nothing", task_run_name="nothing {scan.series_uid}", retries=2, cache_policy=NO_CACHE)
    def one(scan: Any, home: Home) -> Any:
        return kept(scan)

    @task(name="nothing", task_run_name="nothing {scans[0].series_uid}", retries=2, cache_policy=NO_CACHE)
    def several(scans: Sequence[Any], home: Home) -> Any:
        return kept(scans)

    scans, home, took = [_scan(number) for number in range(count)], Home(folder / "home"), {}
    parts = [scans[start : start + batch] for start in range(0, count, batch)]
    database = folder / "prefect.db"
    me = psutil.Process()

    def server_cpu() -> float:
        given = os.environ.get(SERVER_PID)
        first = [psutil.Process(int(given))] if given else []
        family = [*first, *(first[0] if first else me).children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in family)

    @flow(name="bench", task_runner=mapped_runner())
    def bench(empty: bool) -> None:
        start, cpu = time.perf_counter(), time.process_time()
        if not empty:
            for _ in range(stages):
                if batch == 1:
                    gather(one.map(scans, home=unmapped(home)), "doing nothing")
                else:
                    gather(several.map(parts, home=unmapped(home)), "doing nothing")
        took["wall_s"], took["own_cpu_s"] = time.perf_counter() - start, time.process_time() - cpu

    bench(True)  # what the first flow run of a database costs is not the tasks'
    before, server_before = _settled(database), server_cpu()
    bench(False)
    after = _settled(database)
    runs = stages * len(parts)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    total = sum(grown.values())
    return Cost(
        scans=count,
        runs=runs,
        **took,
        server_cpu_s=server_cpu() - server_before,
        bytes_a_run=total / runs,
        tables={name: size / total for name, size in grown.items() if size > total / 100},
    )


def _settled(database: Path) -> dict[str, int]:
    """Bytes of each table with its indices, once nothing has been added for a while."""
    rows = -1
    while True:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
            now = sum(connection.execute(f"select count(*) from {name}").fetchone()[0] for name in WRITTEN)
            if now == rows:
                sizes = connection.execute(
                    "select m.tbl_name, sum(s.pgsize) from dbstat s join sqlite_master m on m.name = s.name group by 1"
                )
                return dict(sizes.fetchall())
        rows = now
        time.sleep(QUIET_S)


if __name__ == "__main__":
    main()
