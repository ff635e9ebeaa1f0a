"""Ctrl-C in a terminal, and the signal of a worker that cancels: a run in the middle of a training on a made-up GPU."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tasks.gpu_machine import ONE, put_smi

PROJECT = Path(__file__).parents[2]

# A `luna` command whose flow trains as the real ones do, but for the child, which only waits.
COMMAND = """
import subprocess, sys
from pathlib import Path
from flows import cli
from flows.terminal import start

CHILD = '''
import json, os, time
print(json.dumps({"event": "log", "level": 20, "text": str(os.getpid())}), flush=True)
time.sleep(300)
'''


@cli.app.command()
def wait():
    home = start()
    import torch
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from flows.settings import tell_the_story
    from flows.temporary_server import ready_server
    from tasks import child, gpus, tracking

    tell_the_story()
    ready_server()
    gpus.resolve_device = lambda name: torch.device("cuda")
    popen = subprocess.Popen

    def play(command, **options):
        return popen([sys.executable, "-c", CHILD] if "lungml.job" in command else command, **options)

    child.subprocess.Popen = play

    @task(cache_policy=NO_CACHE)
    def train():
        with tracking.open_run(home, "segmentation", name="it", sample_every_s=None), gpus.gpu_slots("cuda"):
            child.run_child(home.root, lambda event: print("training in", event["text"], flush=True))

    @flow(name="luna")
    def run():
        with child.children_ended():
            train.submit().result()

    run()


sys.argv = ["luna", "wait"]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    put_smi(tmp_path, monkeypatch, listing=ONE)
    home = tmp_path / "artifacts"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment |= {
        "HOME": str(tmp_path),
        "LUNA_HOME": str(home),
        "LUNA_GPU_LOCKS": str(tmp_path / "locks"),
        "PYTHONPATH": str(PROJECT),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("training in "):
            break
    else:
        raise AssertionError("".join(said))
    child = int(line.split()[-1])
    family = [child, *(one.pid for one in psutil.Process(process.pid).children(recursive=True))]
    assert _ask(home / "prefect" / "prefect.db", "SELECT active_slots FROM concurrency_limit_v2") == [(1,)]
    begun = time.monotonic()
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # a terminal sends it to everybody
    else:
        process.send_signal(how)
    rest, _ = process.communicate(timeout=120)
    took_s = time.monotonic() - begun
    print(f"{how.name}: ended after {took_s:.1f} s")
    assert took_s < 60, rest  # some 6 s; with a server that ends first it took minutes
    assert "Connection refused" not in rest
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert rest.strip().splitlines()[-1] == "stopped"
        assert "Traceback" not in rest
    else:
        assert process.returncode != 0
    assert not [pid for pid in family if psutil.pid_exists(pid)]
    assert _ask(home / "mlflow.db", "SELECT status FROM runs") == [("KILLED",)]
    assert _ask(home / "prefect" / "prefect.db", "SELECT active_slots FROM concurrency_limit_v2") == [(0,)]
    assert _ask(home / "prefect" / "prefect.db", "SELECT state_type FROM flow_run") == [("CRASHED",)]
    assert not [path for path in home.rglob(".*") if "-" in path.suffix]  # half-written, see `lungml.files.beside_path`


def _ask(database: Path, question: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute(question).fetchall()
