"""Slots on made-up GPUs, through a Prefect server of this module's own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound
from prefect.testing.utilities import prefect_test_harness

from lungml.devices import Hardware
from lungml.errors import TrainingError
from lungml.home import Home
from lungml.recipes.variants import recipe_of
from tasks import child, fitting, gpus
from tasks.child import TrainingStopped
from tasks.gpu_locks import Gpu, GpuLocks, held
from tasks.pipeline import Pipeline
from tests.tasks.gpu_machine import ONE, TWO, put_smi

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(autouse=True)
def machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two GPUs in PyTorch's eyes and nvidia-smi's; each test is a machine of its own."""
    child._stopping.clear()
    monkeypatch.setenv("LUNA_GPU_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("LUNA_GPU_HOST", request.node.name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    put_smi(tmp_path, monkeypatch, listing=TWO)
    monkeypatch.setattr(gpus, "resolve_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(gpus, "POLL_S", 0.05)
    # Prefect's own loggers do not hand on what they are told.
    monkeypatch.setattr(gpus, "get_run_logger", lambda: logging.getLogger("of-the-run"))
    caplog.set_level(logging.INFO, logger="of-the-run")


def taken() -> int:
    """The slots that the server shows as taken; 0 as long as there is no limit."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(gpus.limit_name()).active_slots
        except ObjectNotFound:
            return 0


def set_taken(slots: int) -> None:
    """What a server shows that forgot its leases, or whose holders were killed."""
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(gpus.limit_name(), GlobalConcurrencyLimitUpdate(active_slots=slots))


def hold(device: str = "auto", count: int = 1) -> Any:
    """In a task run, as it is meant to be: returns a context manager."""
    return gpus.gpu_slots(device, count)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_on_a_cpu_nothing_is_asked_or_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a server was asked")

    monkeypatch.setattr(gpus, "get_client", never)
    with hold("cpu") as slots:  # no run, no server
        assert slots == ()
        assert held() == 0
    assert gpus.cuda_name((), "cpu") == "cpu"


def test_more_than_there_are_is_refused_at_once() -> None:
    with pytest.raises(TrainingError, match="3 GPUs were asked for, 2 may be used here"):
        hold("cuda", 3).__enter__()
    assert held() == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_refuses_its_work_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    recipe = recipe_of("demo")
    gpus.check_training(recipe, Hardware(device="auto"))
    with pytest.raises(TrainingError, match="device 'cuda' was asked for, but PyTorch sees no GPU"):
        gpus.check_training(recipe, Hardware(device="cuda"))
    with pytest.raises(TrainingError, match="cannot be shared by 7 devices"):
        gpus.check_training(recipe, Hardware(device="cpu", count=7))


def test_a_gpu_is_known_by_its_uuid_whatever_order_pytorch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        def __init__(self, uuid: str) -> None:
            self.uuid = uuid

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties(("bbbb-1", "aaaa-0")[index]))
    assert gpus.cuda_name((Gpu(uuid="GPU-aaaa-0", index=0),), "auto") == "cuda:1"
    assert gpus.cuda_name((Gpu(uuid="GPU-cccc", index=1),), "auto") == "cuda:1"  # one that PyTorch gives no UUID of


def test_the_limit_has_the_machines_size(server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def size() -> int:
        with get_client(sync_client=True) as client:
            return client.read_global_concurrency_limit_by_name(gpus.limit_name()).limit

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # the limit is all processes'
    assert (gpus.ensure_limit(), size()) == (2, 2)
    put_smi(tmp_path, monkeypatch, listing=ONE)
    assert (gpus.ensure_limit(), size()) == (1, 1)
    monkeypatch.setenv("LUNA_GPU_HOST", "without one")
    put_smi(tmp_path, monkeypatch, script="exit 9")
    assert gpus.ensure_limit() == 0
    assert gpus.reconcile() == 0  # and no limit was made
    assert gpus.limit_name() == "luna-gpu-without-one"


def test_slots_are_seen_and_given_back(server: None) -> None:
    with hold() as first:
        assert [gpu.index for gpu in first] == [0]
        assert taken() == held() == 1
        with hold() as second:
            assert [gpu.index for gpu in second] == [1]
            assert taken() == held() == 2
    assert taken() == held() == 0

    def fail() -> None:
        with hold(count=2) as both:
            assert len(both) == taken() == 2
            raise RuntimeError("of the work itself")

    with pytest.raises(RuntimeError, match="of the work itself"):
        fail()
    assert taken() == held() == 0
    with hold("cuda:1") as named:
        assert [gpu.uuid for gpu in named] == ["GPU-bbbb-1"]


def test_who_waits_says_so_and_is_next(server: None, caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []
    others = GpuLocks()
    others.take([Gpu(uuid="GPU-bbbb-1", index=1)], 1)

    def end() -> None:
        until(lambda: "waiting for 2 of 2 GPUs" in caplog.text)
        time.sleep(0.3)
        order.append("first")
        others.release()

    @task(name="waits", cache_policy=NO_CACHE)
    def waits() -> None:
        with hold("auto", 2):
            order.append("second")

    ending = threading.Thread(target=end)
    ending.start()
    try:
        waits()
    finally:
        others.release()
        ending.join()
    assert order == ["first", "second"]
    assert gpus.limit_name() in caplog.text
    assert taken() == held() == 0


def test_who_is_ended_while_he_waits_leaves_nothing(server: None) -> None:
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            with hold("auto", 2):
                raise AssertionError("it was held")
        except BaseException as error:
            raised.append(error)

    gpus.ensure_limit()
    ours = GpuLocks()
    ours.take([Gpu(uuid="GPU-aaaa-0", index=0)], 1)
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    child._stopping.set()
    thread.join(60)
    assert [type(error) for error in raised] == [TrainingStopped]
    assert held() == 1
    ours.release()
    assert taken() == held() == 0


HOLDER = """
import time, torch
from prefect.exceptions import ObjectNotFound
from prefect.logging import disable_run_logger
from tasks import gpus
gpus.resolve_device = lambda name: torch.device("cuda")
with disable_run_logger(), gpus.gpu_slots("cuda", 2):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_killed_holder_keeps_no_gpu_and_no_slot(server: None) -> None:
    from prefect.settings import PREFECT_API_URL

    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=environment, cwd=PROJECT
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert taken() == 2
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert taken() == 2  # its lease runs for another minute
    started = time.monotonic()
    with hold(count=2):
        assert time.monotonic() - started < 30
        assert taken() == 2
    assert taken() == 0


def test_leftovers_are_given_back_and_what_is_held_is_not(server: None) -> None:
    gpus.ensure_limit()
    set_taken(2)
    assert gpus.reconcile() == 2
    assert taken() == 0
    with hold():
        set_taken(2)
        assert gpus.reconcile() == 1
        assert taken() == 1
        assert gpus.reconcile() == 0


def test_a_server_that_forgets_the_lease_ends_nothing(server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart does: the lease is gone, and the slot stays taken in the database."""
    leases: list[UUID] = []
    take = gpus._Slots._take

    def noting(slots: Any, client: Any) -> None:
        take(slots, client)
        leases.append(slots._lease)

    monkeypatch.setattr(gpus._Slots, "_take", noting)
    monkeypatch.setattr(gpus, "RENEW_S", 0.2)
    with hold():
        with get_client(sync_client=True) as client:
            client.release_concurrency_slots_with_lease(leases[0])
        set_taken(1)
        until(lambda: len(leases) == 2)
        assert leases[0] != leases[1]
        assert taken() == 1
        set_taken(0)  # as when a dead holder's lease runs out late
        until(lambda: taken() == 1)
    assert taken() == held() == 0


def test_a_server_that_is_away_costs_the_sight_not_the_work(
    server: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = threading.Event()
    get = gpus.get_client

    def perhaps(**options: Any) -> Any:
        if away.is_set():
            raise ConnectionError("All connection attempts failed")
        return get(**options)

    monkeypatch.setattr(gpus, "get_client", perhaps)
    monkeypatch.setattr(gpus, "RENEW_S", 0.1)

    @task(name="works", cache_policy=NO_CACHE)
    def works() -> str:
        away.set()
        with hold():
            time.sleep(0.5)
            away.clear()
            until(lambda: taken() == 1)
            away.set()
            time.sleep(0.5)
        return "done"

    assert works() == "done"
    assert held() == 0
    lines = [record.getMessage() for record in caplog.records if "does not show this GPU" in record.getMessage()]
    assert len(lines) == 2  # one each time it went away, however often it was asked
    away.clear()
    set_taken(1)
    assert gpus.reconcile() == 1


@pytest.mark.parametrize("gpu", [(), (Gpu(uuid="GPU-bbbb-1", index=1),)])
def test_a_training_sees_the_gpu_that_is_held_for_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: tuple[Gpu, ...]
) -> None:
    written: list[Any] = []
    ran: list[Any] = []
    asked: list[Any] = []

    @contextmanager
    def slots(*wanted: Any) -> Iterator[tuple[Gpu, ...]]:
        asked.append(wanted)
        yield gpu

    monkeypatch.setattr(fitting, "gpu_slots", slots)
    monkeypatch.setattr(fitting, "write_job", lambda folder, job, parent: written.append(job))
    monkeypatch.setattr(fitting, "run_child", lambda *_, **options: ran.append(options["environment"]))
    monkeypatch.setattr(fitting, "read_result", lambda folder: "result")
    monkeypatch.setattr(fitting, "_Events", lambda *_: None)
    monkeypatch.setattr(fitting, "get_run_logger", lambda: None)
    recipe = recipe_of("demo").segmentation
    device = "cuda:1" if gpu else "cpu"
    pipeline = Pipeline(home=Home(tmp_path), pipeline_id="1", origin="phantom", seed=0, device=device)
    training = SimpleNamespace(
        stage="segmentation", name="it", settings=recipe, scans=(), pipeline=pipeline, identity={}, parent_weights=None,
        sensitivity=None,
    )  # fmt: skip
    assert fitting._learn(training, tmp_path, None) == "result"  # type: ignore[arg-type]
    assert asked == [(device, 1)]
    assert written[0].hardware.device == ("cuda" if gpu else "cpu")  # of those it sees, the first
    assert ran == [{"CUDA_VISIBLE_DEVICES": "GPU-bbbb-1"} if gpu else {}]
