"""`luna up`: what stands in its way is one line, what dies comes back, and what it starts it also ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows import servers as servers_module
from flows import services as children
from flows import up as module
from flows.prefect_api import PrefectApi
from flows.servers import (
    ADDRESS_MARK,
    Running,
    Servers,
    announced,
    find_servers,
    only_one,
    running,
)
from flows.services import MARK, Services, StopAskedError, UpError, end_orphans
from flows.up import up
from lungml.home import Home
from lungml.secrets import without_credentials

PROJECT = Path(__file__).parents[2]
SLEEP = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); {SLEEP}"
FAR = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}'], start_new_session=True); {SLEEP}"
OURS = Servers(PrefectApi("http://127.0.0.1:1/api"), "http://127.0.0.1:1", "http://127.0.0.1:2", True, True)
# The first try finds no room on the disk, the second is killed, the third comes to its end.
FLOW = """
import errno, os, signal
from datetime import timedelta
from pathlib import Path
from prefect import flow
from flows import revive

revive.LATER = timedelta(seconds=2)

@flow(name="luna", on_failure=[revive.run_again_later])
def end_to_end(n: int = 2, recipe: str = "demo", trouble: bool = False) -> int:
    if trouble:
        tries = Path(os.environ["LUNA_HOME"]) / "tries"
        tries.touch()
        with tries.open("a") as told:
            told.write("x")
        if tries.stat().st_size == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "crops")
        if tries.stat().st_size == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return n
"""
RUN_UP = """
import sys
from pathlib import Path
from lungml.home import Home
from flows.settings import configure_process
home = Home(Path(sys.argv[1]) / "artifacts")
configure_process(home, flows=False)
from flows.up import up
sys.exit(up(home, prefect_port=int(sys.argv[2]), mlflow_port=int(sys.argv[3]), project=Path(sys.argv[1])))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path / "artifacts")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Scripts(Services):
    """Services that run `python -c` scripts."""

    def _spawn(self, command: Sequence[str], log: Path) -> tuple[subprocess.Popen[bytes], str]:
        mark = secrets.token_hex(8)
        with log.open("ab") as sink:
            python = [sys.executable, "-c", *command]
            env = {**os.environ, **self._env, MARK: mark}
            process = subprocess.Popen(python, stdout=sink, stderr=sink, env=env, start_new_session=True)
        return process, mark


def nothing() -> None:
    """Tend to nothing."""


def test_a_taken_port_names_itself_and_its_option(home: Home, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UpError, match=rf"^port {port} on 127.0.0.1 cannot be used .*: --prefect-port$"):
            up(home, prefect_port=port, mlflow_port=free_port(), project=tmp_path)
        with pytest.raises(UpError, match=rf"^port {port} on 127.0.0.1 cannot be used .*: --mlflow-port$"):
            up(home, prefect_port=free_port(), mlflow_port=port, project=tmp_path)


def test_a_second_one_names_the_first(home: Home, tmp_path: Path) -> None:
    servers = Servers(PrefectApi("http://127.0.0.1:4200/api"), "http://127.0.0.1:4200", "http://m:5000", True, True)
    with only_one(home) as announce:
        with pytest.raises(UpError, match=r"runs already .*: it is just starting$"):
            up(home, project=tmp_path)
        announce(servers)
        with pytest.raises(
            UpError,
            match=rf"runs already .*: Prefect http://127.0.0.1:4200, MLflow http://m:5000 \(process {os.getpid()}\)$",
        ):
            up(home, project=tmp_path)
        assert running(home) == Running("http://127.0.0.1:4200/api", "http://m:5000", os.getpid())
    assert running(home) is None
    with only_one(home):  # free again
        pass


def test_one_who_only_looks_is_in_nobodys_way(home: Home) -> None:
    home.root.mkdir()
    with (home.root / "up.lock").open("a+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        done = threading.Timer(0.05, fcntl.flock, (looking, fcntl.LOCK_UN))
        done.start()
        with servers_module.only_one(home):
            assert servers_module.running(home) is not None
        done.join()


def test_no_child_nor_its_children_outlive_the_block(home: Home) -> None:
    others = set(psutil.Process().children(recursive=True))  # of this test process, from other tests

    def started() -> set[psutil.Process]:
        return set(psutil.Process().children(recursive=True)) - others

    with Scripts(home, home.root, {}) as services:
        services.start("one", [SLEEP])
        services.start("two", [PARENT])
        assert eventually(lambda: len(started()) >= 3)
        children = started()
    assert not [child for child in children if child.is_running()]


@pytest.mark.parametrize("script", [PARENT, FAR], ids=["its own session", "another session"])
def test_what_a_dead_service_started_is_ended(script: str, home: Home) -> None:
    with Scripts(home, home.root, {}) as services:
        services.start("two", [script])
        leader = psutil.Process(services["two"].process.pid)
        assert eventually(lambda: bool(leader.children()))
        grandchild = leader.children()[0]
        assert eventually(lambda: grandchild.environ().get(MARK) == services["two"].mark)
        leader.kill()
        services["two"].process.wait()
        with pytest.raises(UpError, match=r"^the two ended \(SIGKILL\); its output: .*two.log$"):
            services.check()
        services._keep_alive(services["two"])
        assert not grandchild.is_running()


def test_a_service_that_dies_is_started_again_with_what_its_command_says_then(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "POLL_S", 0.05)
    lives: list[int] = []
    said: list[str] = []

    def command() -> list[str]:
        lives.append(len(lives))
        return [SLEEP if lives[-1] else "import sys; sys.exit('no room')"]

    def tend() -> None:
        if len(lives) == 2 and services["one"].alive:
            os.kill(os.getpid(), signal.SIGTERM)

    with Scripts(home, home.root, {}, said.append) as services:
        services.start("one", command)
        with pytest.raises(StopAskedError):
            services.watch(tend, every_s=0.1)
    (line,) = said
    assert line.startswith("the one ended (exit status 1): no room: started again in 1 s; its output: ")


def test_a_full_disk_keeps_no_service_from_being_started_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "POLL_S", 0.05)
    lives: list[str] = []

    def command() -> list[str]:
        lives.append(SLEEP if lives else "")
        return [lives[-1]]

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def tend() -> None:
        if len(lives) == 2 and services["one"].alive:
            os.kill(os.getpid(), signal.SIGTERM)

    with Scripts(home, home.root, {}, lambda line: None) as services:
        services.start("one", command)
        monkeypatch.setattr(children, "write_text_atomic", full)
        with pytest.raises(StopAskedError):
            services.watch(tend, every_s=0.1)


def test_one_that_dies_again_and_again_is_given_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "POLL_S", 0.01)
    monkeypatch.setattr(children, "MAX_PAUSE_S", 0.01)
    said: list[str] = []
    with Scripts(home, home.root, {}, said.append) as services:
        services.start("one", ["import sys; sys.exit('no room')"])
        words = r"^the one ended \(exit status 1\): no room, for the 5th time within 10 min; its output: .*one.log$"
        with pytest.raises(UpError, match=words):
            services.watch(nothing)
    assert len(said) == 4


def test_what_a_killed_one_left_is_ended_by_the_next(home: Home) -> None:
    with Scripts(home, home.root, {}) as killed:
        killed.start("one", [FAR])
        left = psutil.Process(killed["one"].process.pid)
        assert eventually(lambda: bool(left.children()))
        family = [left, *left.children()]
        assert eventually(lambda: family[1].environ().get(MARK) == killed["one"].mark)
        end_orphans(home)
        assert not psutil.wait_procs(family, timeout=30)[1]


def test_another_program_with_an_old_number_is_left_alone(home: Home) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as other:
        home.logs.mkdir(parents=True)
        (home.logs / "services.json").write_text(json.dumps([[other.pid, 1.0, "of-another"]]))
        end_orphans(home)
        assert other.poll() is None
        other.kill()


def test_one_whose_server_is_away_waits_for_it(home: Home) -> None:
    there: list[int] = []
    with Scripts(home, home.root, {}, lambda line: None) as services:
        services.start("one", [SLEEP], lambda: bool(there))
        services["one"].process.kill()
        services["one"].process.wait()
        services._keep_alive(services["one"])  # told of
        services["one"].due = 0.0
        services._keep_alive(services["one"])
        assert not services["one"].alive
        there.append(1)
        services._keep_alive(services["one"])
        assert services["one"].alive


def test_a_service_that_fails_while_all_start_says_its_last_words(home: Home) -> None:
    fail = "import sys; sys.exit('no room')"
    with Scripts(home, home.root, {}) as services:
        with pytest.raises(UpError, match=r"failed: no room; its output: .*deploy.log$"):
            services.run("deploy", [fail])
        services.start("one", [fail])
        with pytest.raises(UpError, match=r"^the one ended \(exit status 1\): no room; its output: .*one.log$"):
            services.wait("one", lambda: False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_watch_and_the_handlers_come_back(number: int, home: Home) -> None:
    before = signal.getsignal(number)
    with Scripts(home, home.root, {}) as services:
        services.start("one", [SLEEP])
        os.kill(os.getpid(), number)
        with pytest.raises(StopAskedError):
            services.watch(nothing)
    assert services["one"].process.poll() is not None
    assert signal.getsignal(number) == before


def test_the_address_is_announced_while_it_holds(tmp_path: Path) -> None:
    told = tmp_path / "prefect.toml"
    for stale in (None, ADDRESS_MARK + "[api]\n"):
        if stale:
            told.write_text(stale)
        with announced(tmp_path, OURS) as found:
            assert found
            assert told.read_text().endswith('[api]\nurl = "http://127.0.0.1:1/api"\n')
        assert not told.exists()


def test_somebody_elses_address_stays(tmp_path: Path) -> None:
    (tmp_path / "prefect.toml").write_text("[api]\n")
    with announced(tmp_path, OURS) as found:
        assert not found
    assert (tmp_path / "prefect.toml").read_text() == "[api]\n"


def test_servers_of_others_are_used_where_they_answer(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://jane:secret@prefect.example:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://jane:secret@mlflow.example/")
    monkeypatch.setattr(
        servers_module, "server_answers", lambda url: url == "http://jane:secret@prefect.example:4200/api"
    )
    servers = find_servers("127.0.0.1", 4201, 5001, tmp_path)
    assert (servers.own_prefect, servers.own_mlflow) == (False, False)
    assert servers.prefect.url == "http://jane:secret@prefect.example:4200/api"
    assert (servers.prefect_ui, servers.mlflow_ui) == ("http://prefect.example:4200", "https://mlflow.example")
    monkeypatch.setattr(servers_module, "server_answers", lambda url: False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////somewhere/mlflow.db")
    servers = find_servers("127.0.0.1", 4201, 5001, tmp_path)
    assert (servers.own_prefect, servers.own_mlflow) == (True, True)
    assert (servers.prefect.url, servers.mlflow_ui) == ("http://127.0.0.1:4201/api", "http://127.0.0.1:5001")


def test_our_own_address_is_no_server_of_somebody_elses(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers_module, "server_answers", lambda url: True)
    # One that a `luna up` announced belongs to another home: runs of two homes would mix.
    (tmp_path / "prefect.toml").write_text(servers_module._announcement("http://127.0.0.1:4300/api"))
    assert find_servers("127.0.0.1", 4201, 5001, tmp_path).own_prefect
    assert find_servers("127.0.0.1", 4201, 5001, tmp_path / "another").own_prefect  # started in the first one's folder
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4300/api")
    assert not find_servers("127.0.0.1", 4201, 5001, tmp_path).own_prefect
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4201/api")
    assert find_servers("127.0.0.1", 4201, 5001, tmp_path).own_prefect


def test_a_url_is_shown_without_credentials() -> None:
    assert without_credentials("https://jane:secret@host:80/api?key=secret") == "https://host:80/api"


def test_a_worker_takes_runs_for_a_gpu_only_where_there_is_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = module.Worker(home)
    monkeypatch.setattr(module, "gpus_here", lambda: 0)
    without = worker.command()
    monkeypatch.setattr(module, "gpus_here", lambda: 2)
    with_gpus = worker.command()
    assert without[-2:] == ["--work-queue", "default"]
    assert with_gpus[-4:] == ["--work-queue", "default", "--work-queue", "gpu"]
    names = [command[command.index("--name") + 1] for command in (without, with_gpus)]
    assert names[0] != names[1]  # a run of the former life can be told from one of this
    ours = module.Worker(home)._ours  # of the next `luna up` on this home
    assert all(name.startswith(ours) for name in names)
    assert module.Worker(Home(home.root / "other"))._ours != ours


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_runs_come_to_their_end_through_trouble_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "scratch_luna.py").write_text(FLOW)
    deployed = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
    del deployed["deployments"][1:], deployed["definitions"]
    end_to_end = deployed["deployments"][0]
    end_to_end |= {"entrypoint": "scratch_luna.end_to_end", "parameters": {}}
    end_to_end["schedules"][0] |= {"cron": "* * * * *", "parameters": {"n": 5}}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(deployed))
    prefect_port, mlflow_port = free_port(), free_port()
    api, ui = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", RUN_UP, str(tmp_path), str(prefect_port), str(mlflow_port)]

    def ask(path: str, body: dict[str, Any]) -> Any:
        for _ in range(30):  # a server that was just started is too busy to answer, and says so
            answer = httpx.post(f"{api}/{path}", json=body, timeout=30.0)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(1.0)
        return answer.raise_for_status().json()

    def state_of(run: dict[str, Any]) -> str:
        (found,) = ask("flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return str(found["state"]["name"])

    def child(words: str, other_than: int = 0) -> psutil.Process | None:
        for one in psutil.Process(running.pid).children():
            with suppress(psutil.Error):  # a zombie has no command line
                if words in " ".join(one.cmdline()) and one.pid != other_than:
                    return one
        return None

    def is_there(words: str, other_than: int) -> bool:
        return child(words, other_than) is not None

    def answers() -> bool:
        try:
            return httpx.get(f"{api}/health").is_success
        except httpx.HTTPError:
            return False

    # Not here, where the prefect.toml of a `luna up` that runs may lie: its server is no place for a test.
    with subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            told = []
            for line in running.stdout:
                told.append(line)
                if line.startswith("Ctrl-C"):
                    break
            assert f"PREFECT_API_URL={api} prefect deployment run luna/end-to-end --watch" in "".join(told)
            children = psutil.Process(running.pid).children(recursive=True)
            assert len(children) >= 3
            assert httpx.get(f"{ui}/health").is_success

            # In the project's folder the command needs no address.
            run = [sys.executable, "-m", "prefect", "deployment", "run", "luna/end-to-end", "--watch"]
            watched = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
            assert watched.returncode == 0, watched.stdout
            assert "Completed" in watched.stdout

            # A run that wants a GPU waits for a worker that has one, also while others are run.
            (deployment,) = ask("deployments/filter", {})
            start = f"deployments/{deployment['id']}/create_flow_run"
            for_a_gpu = ask(start, {"work_queue_name": "gpu"})

            # What fails of a full disk is tried again later, and what is killed soon.
            troubled = ask(start, {"parameters": {"trouble": True}})
            assert eventually(lambda: state_of(troubled) == "Completed", 300)
            states = httpx.get(f"{api}/flow_run_states/", params={"flow_run_id": troubled["id"]}).json()
            messages = [state["message"] or "" for state in states]
            assert [m[:23] for m in messages if m.startswith("Taken up")] == [
                "Taken up again (1 of 3)",
                "Taken up again (2 of 3)",
            ]

            # Neither the worker's death nor the server's ends anything.
            for words in ("worker start", "server start"):
                dead = child(words)
                assert dead is not None
                dead.kill()
                assert eventually(partial(is_there, words, dead.pid), 60)
                assert eventually(answers, 120)
            after = ask(start, {"parameters": {"n": 3}})
            assert eventually(lambda: state_of(after) == "Completed", 120)

            # The schedule fires, once a minute here.
            fired = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}

            def scheduled() -> list[dict[str, Any]]:
                return [run for run in ask("flow_runs/filter", fired) if run["auto_scheduled"]]

            assert eventually(lambda: bool(scheduled()), 120)
            assert scheduled()[0]["parameters"] == {"n": 5}
            assert state_of(for_a_gpu) in ("Scheduled", "Late")
        finally:
            running.send_signal(signal.SIGINT)
            status = running.wait(60)
    assert status == 0
    assert not [child for child in children if child.is_running()]
    assert not (tmp_path / "prefect.toml").exists()
