"""`luna up`: what stands in its way is one line, and what it starts it also ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows import up as module
from flows.up import ADDRESS_MARK, Service, Services, UpError, up
from lungml.home import Home

PROJECT = Path(__file__).parents[2]
SLEEP = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); {SLEEP}"
FLOW = """
from prefect import flow

@flow(name="luna")
def end_to_end(n: int = 2, recipe: str = "demo") -> int:
    return n
"""
RUN_UP = """
import sys
from pathlib import Path
from lungml.home import Home
from flows.settings import configure_process
home = Home(Path(sys.argv[1]) / "artifacts")
configure_process(home)
from flows.up import up
sys.exit(up(home, prefect_port=int(sys.argv[2]), mlflow_port=int(sys.argv[3]), project=Path(sys.argv[1])))
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "artifacts")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Scripts(Services):
    """Services that run `python -c` scripts."""

    def _spawn(self, name: str, module: str, arguments: Any) -> Service:
        log = self._home.logs / f"{name}.log"
        with log.open("wb") as sink:
            command = [sys.executable, "-c", module, *arguments]
            process = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
        return Service(name, process, log)


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
    running = module._only_one(home, {"Prefect": "http://127.0.0.1:4200"})
    with running, pytest.raises(UpError, match=rf"runs already .*127.0.0.1:4200 \(process {os.getpid()}\)$"):
        up(home, project=tmp_path)
    with module._only_one(home, {}):  # free again
        pass


def test_no_child_nor_its_children_outlive_the_block(home: Home) -> None:
    others = set(psutil.Process().children(recursive=True))  # of this test process, from other tests

    def started() -> set[psutil.Process]:
        return set(psutil.Process().children(recursive=True)) - others

    with Scripts(home, home.root, {}) as services:
        services.start("one", SLEEP)
        services.start("two", PARENT)
        assert eventually(lambda: len(started()) >= 3)
        children = started()
    assert not [child for child in children if child.is_running()]


def test_a_grandchild_whose_parent_was_killed_is_ended(home: Home) -> None:
    with Scripts(home, home.root, {}) as services:
        services.start("two", PARENT)
        leader = psutil.Process(services._services[0].process.pid)
        assert eventually(lambda: bool(leader.children()))
        grandchild = leader.children()[0]
        leader.kill()
        with pytest.raises(UpError, match=r"^the two ended \(exit status -9\); its output: .*two.log$"):
            services.watch()
    assert not grandchild.is_running()


def test_what_a_killed_one_left_is_ended_by_the_next(home: Home) -> None:
    with Scripts(home, home.root, {}) as killed:
        killed.start("one", PARENT)
        left = psutil.Process(killed._services[0].process.pid)
        assert eventually(lambda: bool(left.children()))
        family = [left, *left.children()]
        with Scripts(home, home.root, {}):
            pass
        assert not psutil.wait_procs(family, timeout=5)[1]


def test_another_program_with_an_old_number_is_left_alone(home: Home) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as other:
        home.logs.mkdir(parents=True)
        (home.logs / "services.json").write_text(json.dumps([[other.pid, 1.0]]))
        with Scripts(home, home.root, {}):
            pass
        assert other.poll() is None
        other.kill()


def test_a_service_that_fails_says_its_last_words(home: Home) -> None:
    fail = "import sys; sys.exit('no room')"
    with Scripts(home, home.root, {}) as services:
        with pytest.raises(UpError, match=r"failed: no room; its output: .*deploy.log$"):
            services.run("deploy", fail)
        services.start("one", fail)
        with pytest.raises(UpError, match=r"^the one ended \(exit status 1\): no room; its output: .*one.log$"):
            services.watch()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_watch_and_the_handlers_come_back(number: int, home: Home) -> None:
    before = signal.getsignal(number)
    with Scripts(home, home.root, {}) as services:
        services.start("one", SLEEP)
        os.kill(os.getpid(), number)
        with pytest.raises(module._Stop):
            services.watch()
    assert services._services[0].process.poll() is not None
    assert signal.getsignal(number) == before


def test_the_address_is_announced_while_it_holds(tmp_path: Path) -> None:
    announced = tmp_path / "prefect.toml"
    for stale in (None, ADDRESS_MARK + "[api]\n"):
        if stale:
            announced.write_text(stale)
        with module._announced(tmp_path, "http://127.0.0.1:1/api") as found:
            assert found
            assert announced.read_text().endswith('[api]\nurl = "http://127.0.0.1:1/api"\n')
        assert not announced.exists()


def test_somebody_elses_address_stays(tmp_path: Path) -> None:
    (tmp_path / "prefect.toml").write_text("[api]\n")
    with module._announced(tmp_path, "http://127.0.0.1:1/api") as found:
        assert not found
    assert (tmp_path / "prefect.toml").read_text() == "[api]\n"


def test_what_is_deployed_can_be_called() -> None:
    from flows.end_to_end import end_to_end
    from flows.prepare import prepare

    deployed, preparing = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    assert (preparing["name"], preparing["entrypoint"]) == ("prepare", "flows.prepare.prepare")
    prepare.validate_parameters({"luna_dir": "/data/LUNA16", "recipe": "report", "download": {}})
    assert f"{end_to_end.name}/{deployed['name']}" == module.DEPLOYMENT
    assert deployed["entrypoint"] == "flows.end_to_end.end_to_end"
    assert deployed["work_pool"]["name"] == module.POOL
    assert deployed["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    (weekly,) = deployed["schedules"]
    for parameters in (deployed["parameters"], weekly["parameters"]):
        end_to_end.validate_parameters(parameters)


@pytest.mark.slow
def test_a_deployment_runs_to_its_end_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "scratch_luna.py").write_text(FLOW)
    deployed = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
    del deployed["deployments"][1:]
    deployed["deployments"][0]["entrypoint"] = "scratch_luna.end_to_end"
    deployed["deployments"][0]["schedules"][0]["parameters"] = {"n": 5}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(deployed))
    prefect_port, mlflow_port = free_port(), free_port()
    api, ui = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", RUN_UP, str(tmp_path), str(prefect_port), str(mlflow_port)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as running:
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

            def scheduled() -> list[dict[str, Any]]:
                return [r for r in httpx.post(f"{api}/flow_runs/filter", json={}).json() if r["auto_scheduled"]]

            assert eventually(lambda: bool(scheduled()), 60)
            assert scheduled()[0]["parameters"] == {"n": 5}
        finally:
            running.send_signal(signal.SIGINT)
            status = running.wait(60)
    assert status == 0
    assert not [child for child in children if child.is_running()]
    assert not (tmp_path / "prefect.toml").exists()
