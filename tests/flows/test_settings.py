"""Which server a `luna` process talks to, and what it leaves alone; each case in a process of its own."""

from __future__ import annotations

import http.server
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.settings import Story, server_answers
from lungml.errors import LunaError

NOWHERE = "http://127.0.0.1:9/api"  # the discard port: nothing listens
SHOW = """
import sys
from pathlib import Path
from lungml.home import Home
from flows.settings import configure_process
configure_process(Home(Path(sys.argv[1])))
from prefect.settings import get_current_settings
now = get_current_settings()
print(now.api.url or "own", now.home, now.results.local_storage_path, sep="|")
"""


def configured(folder: Path, **env: str) -> tuple[list[str], str]:
    """What Prefect believes after `configure_process` in a bare environment: [API URL, home, results]."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    clean |= {"HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[2]), **env}
    done = subprocess.run(
        [sys.executable, "-c", SHOW, str(folder / "artifacts")],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().split("|"), done.stderr


@pytest.fixture
def server() -> Iterator[str]:
    """The API URL of something that answers health checks."""

    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/api/health": 200, "/private/health": 401}.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}/api"
    listening.shutdown()
    thread.join()
    listening.server_close()


def test_a_server_answers_or_does_not(server: str) -> None:
    assert server_answers(server)
    assert server_answers(server + "/")
    assert server_answers(server.replace("/api", "/private"))  # it wants a key: Prefect says so
    assert not server_answers(server.replace("/api", "/else"))
    assert not server_answers(NOWHERE)
    assert not server_answers("not a url")


def test_everything_of_prefects_lies_under_the_home(tmp_path: Path) -> None:
    (url, prefect_home, results), said = configured(tmp_path)
    assert (url, said) == ("own", "")
    assert Path(prefect_home) == tmp_path / "artifacts" / "prefect"
    assert Path(results) == tmp_path / "artifacts" / "prefect-results"
    assert [p.name for p in tmp_path.iterdir()] == ["artifacts"]


@pytest.mark.parametrize("place", ["environment", "prefect.toml", "profile"])
def test_a_server_that_answers_is_used_wherever_it_is_named(place: str, server: str, tmp_path: Path) -> None:
    (url, *_), said = configured(tmp_path, **named(place, server, tmp_path))
    assert (url, said) == (server, "")


@pytest.mark.parametrize(
    "place",
    ["environment", *(pytest.param(file, marks=pytest.mark.slow) for file in ("prefect.toml", "profile"))],
)
def test_one_that_does_not_answer_costs_a_line(place: str, tmp_path: Path) -> None:
    (url, *_), said = configured(tmp_path, **named(place, NOWHERE, tmp_path))
    if place == "environment":
        assert url == "own"  # started when a flow is
    else:
        assert url.startswith("http://127.0.0.1:8")  # only another address outweighs a file
        assert not server_answers(url)  # ended with its process
    assert said.count("\n") == 1
    assert f"no Prefect server answers at {NOWHERE}" in said


def named(place: str, url: str, folder: Path) -> dict[str, str]:
    """Name a server in one of the places that Prefect reads; the environment that goes with it."""
    if place == "environment":
        return {"PREFECT_API_URL": url}
    if place == "prefect.toml":
        (folder / place).write_text(f'[api]\nurl = "{url}"\n')
    else:
        (folder / ".prefect").mkdir()
        profiles = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{url}"\n'
        (folder / ".prefect" / "profiles.toml").write_text(profiles)
    return {}


def test_what_a_person_has_set_stays(tmp_path: Path) -> None:
    (_, prefect_home, *_), _ = configured(tmp_path, PREFECT_HOME=str(tmp_path / "mine"))
    assert Path(prefect_home) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("level", "message", "error", "told"),
    [
        (logging.INFO, "unet 1/6: loss 0.4", None, True),
        (logging.INFO, "Finished in state Completed()", None, False),
        (logging.INFO, "Beginning flow run 'a' for flow 'luna'", None, False),
        (logging.INFO, "Running hook 'run_again_later' in response to entering state 'Failed'", None, False),
        (logging.INFO, "Hook 'run_again_later' finished running successfully", None, False),
        (logging.WARNING, "set aside: x.mhd", None, True),
        (logging.WARNING, "Still processing items: 1 items remaining...", None, False),
        (logging.ERROR, "Finished in state Failed('no')", None, False),
        (logging.ERROR, "Task run failed", LunaError("x.csv: no rows"), False),
        (logging.ERROR, "Task run failed", ZeroDivisionError(), True),
    ],
)
def test_the_story_is_the_tasks_own_words(level: int, message: str, error: Exception | None, told: bool) -> None:
    exc_info = (type(error), error, None) if error else None
    assert bool(Story().filter(record_of(level, message, exc_info))) == told


def record_of(level: int, message: str, exc_info: Any = None, **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord("prefect.task_runs", level, "", 0, message, (), exc_info)
    record.__dict__.update(extra)
    return record


def test_what_the_flow_sums_up_is_not_told_for_every_scan() -> None:
    story = Story()
    assert not story.filter(record_of(logging.WARNING, "1.2: not a whole chest", task_name="convert_scan", summed=True))
    assert story.filter(record_of(logging.WARNING, "set aside: 1.2.mhd", task_name="convert_scan"))
    assert not story.filter(record_of(logging.INFO, "1.2: 40 slices", task_name="convert_scan"))


def test_of_the_addresses_of_a_run_and_its_subflows_the_first_is_told() -> None:
    story = Story()
    told = [
        story.filter(record_of(logging.INFO, f"View at http://127.0.0.1:4200/runs/{number}")) for number in range(3)
    ]
    assert told == [True, False, False]


def test_the_library_speaks_on_the_pages_of_runs_and_nowhere_in_vain(tmp_path: Path) -> None:
    show = SHOW + "print(*sorted(now.logging.extra_loggers), now.logging.to_api.when_missing_flow)"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    clean |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", show, str(tmp_path / "artifacts")]
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "flows lungml tasks ignore"


@pytest.mark.parametrize(("flows", "level"), [(True, "CRITICAL"), (False, "WARNING")])
def test_prefects_server_writes_in_batches_and_a_temporary_one_ends_quietly(
    tmp_path: Path, flows: bool, level: str
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom flows.settings import configure_process\n"
        "from lungml.home import Home\n"
        f"configure_process(Home(Path(sys.argv[1])), flows={flows})\n"
        "from prefect.settings import get_current_settings\nserver = get_current_settings().server\n"
        "print(server.services.task_run_recorder.batch_size, server.logging_level)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True)
    assert said.stdout.split() == ["100", level], said.stderr
