"""Whose turn is it on a GPU? One slot for each, seen in Prefect's UI, that nothing which dies can keep.

Two things are held at once, first the locks of `tasks.gpu_locks`, then as many slots of a Prefect concurrency limit.
The locks decide: they say which GPU is free, and the kernel takes them from a process that is killed. The limit shows
it to people, and its lease runs out a minute after its holder died. Slots are given back before the locks, so that
there are never rightly more of them than locks; whoever finds more takes them for leftovers (of a killed process, or
of a server that was restarted and forgot its leases) and corrects the limit. A server that does not answer costs the
slot in the UI, until it answers again, and never the work.
"""

from __future__ import annotations

import contextvars
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import torch
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.exceptions import ObjectNotFound
from prefect.runtime import task_run

from lungml.devices import Hardware, check_shared, resolve_device
from lungml.errors import TrainingError, one_line
from lungml.recipes import PARTS, Recipe
from tasks.child import check_stopping
from tasks.gpu_locks import Gpu, GpuLocks, child_environment, gpus_here, held, machine_gpus, visible_gpus

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = [
    "check_training", "child_environment", "cuda_name", "ensure_limit", "gpu_slots", "gpus_here", "limit_name",
    "reconcile",
]  # fmt: skip

LEASE_S = 60.0  # the shortest that Prefect grants
RENEW_S = 20.0  # so that two renewals may fail
POLL_S = 1.0
SAY_AGAIN_S = 600.0  # between two lines of one who waits


def check_training(recipe: Recipe, hardware: Hardware) -> None:
    """Refuse, before any work, a recipe that cannot be trained on this machine as it is asked to be.

    Raises:
        TrainingError: a GPU that is not there, or a batch that the devices cannot share evenly.
    """
    for part in PARTS:
        check_shared(getattr(recipe, part).fit.batch_size, hardware.count)
    hardware.check()


def limit_name() -> str:
    """The concurrency limit of this machine's GPUs: `luna-gpu-<host>`; a GPU of one machine is no slot of another.

    A container has a name of its own: containers that share GPUs get the same LUNA_GPU_HOST, beside the same folder of
    locks.
    """
    host = os.environ.get("LUNA_GPU_HOST") or socket.gethostname()
    return f"luna-gpu-{re.sub(r'[^A-Za-z0-9.-]+', '-', host)}"


def ensure_limit() -> int:
    """Create this machine's limit, with a slot for every GPU, or correct its size; returns the slots, 0 without a GPU.

    Raises:
        httpx.HTTPError: the Prefect server does not answer.
    """
    with get_client(sync_client=True) as client:
        return _ensure(client)


def reconcile() -> int:
    """Give back the slots of this machine's limit that nobody holds; returns how many.

    Safe at any time: every holder of a slot holds a lock as well, so slots beyond the number of locks that are held
    now are nobody's. Someone who begins at this very moment may be shown one slot too few, but keeps his GPU.

    Raises:
        httpx.HTTPError: the Prefect server does not answer.
    """
    with get_client(sync_client=True) as client:
        return _settle(client, held())


@contextmanager
def gpu_slots(device: str, count: int = 1) -> Iterator[tuple[Gpu, ...]]:
    """Wait for free GPUs and hold them, inside a task run; nothing is held, at once, where `device` is the CPU.

    Who asks for several waits until as many are free at one moment; nobody queues, so that one who asks for few may
    overtake.

    Args:
        device: auto, cpu, cuda, or cuda:N for that very one.
        count: how many.

    Raises:
        TrainingError: the device, or as many of them, is not there.
        TrainingStopped: the flow was ended while it waited.
    """
    wanted = resolve_device(device)
    if wanted.type != "cuda":
        yield ()
        return
    log, gpus = get_run_logger(), visible_gpus()
    if not gpus:
        log.warning("nvidia-smi tells of no GPU, though PyTorch sees one: it is used without a slot")
        yield ()
        return
    gpus = gpus if wanted.index is None else gpus[wanted.index : wanted.index + 1]
    if count > len(gpus):
        raise TrainingError(f"{count} GPUs were asked for, {len(gpus)} may be used here; give fewer devices")
    locks = GpuLocks()
    try:
        taken = _wait(locks, gpus, count, log)
        with _Slots(count, log):
            yield taken
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what PyTorch keeps for later is the next holder's
        locks.release()


def cuda_name(gpus: tuple[Gpu, ...], otherwise: str) -> str:
    """The first of some held GPUs as PyTorch calls it in this process, cuda:N; `otherwise` where none is held.

    Makes PyTorch look at the GPUs. It puts the fastest first, which nvidia-smi does not: the UUID says which is which.
    """
    if not gpus:
        return otherwise
    for index in range(torch.cuda.device_count()):
        if str(getattr(torch.cuda.get_device_properties(index), "uuid", "")) == gpus[0].uuid.removeprefix("GPU-"):
            return f"cuda:{index}"
    return f"cuda:{gpus[0].index}"


def _wait(locks: GpuLocks, gpus: tuple[Gpu, ...], count: int, log: Any) -> tuple[Gpu, ...]:
    said: float | None = None
    while True:
        taken = locks.take(gpus, count)
        if taken is not None:
            return taken
        if said is None or time.monotonic() - said > SAY_AGAIN_S:
            said = time.monotonic()
            what = "the GPU" if len(gpus) == 1 else f"{count} of {len(gpus)} GPUs"
            log.info("waiting for %s: other runs on this machine hold them (%s)", what, limit_name())
        check_stopping("while it waited for a GPU")
        time.sleep(POLL_S)


class _Slots:
    """Slots of the limit, renewed until they are given back; no trouble with the server stops their holder.

    Prefect's own `concurrency` renews, too, but for good gives up after three failures in a row, which a server that
    is restarted is sure to cause, and raises where it cannot give the slots back.
    """

    def __init__(self, count: int, log: Any) -> None:
        self._count, self._log, self._said = count, log, False
        self._lease: UUID | None = None
        self._done = threading.Event()
        run = task_run.id
        self._holder = ConcurrencyLeaseHolder(type="task_run", id=UUID(str(run))) if run else None
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._renew,), daemon=True)

    def __enter__(self) -> None:
        self._try(self._take)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(RENEW_S)
        self._try(self._give_back)

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            self._try(self._take if self._lease is None else self._keep)

    def _try(self, step: Any) -> None:
        try:
            with get_client(sync_client=True) as client:
                step(client)
        except Exception as error:  # the lock is held, and the work goes on
            if not self._said:
                self._log.warning("the Prefect server does not show this GPU as taken: %s", one_line(str(error)))
            self._said = True
        else:
            self._said = False

    def _take(self, client: SyncPrefectClient) -> None:
        _ensure(client)
        for left in (1, 0):
            try:
                answer = client.increment_concurrency_slots_with_lease(
                    [limit_name()], self._count, "concurrency", LEASE_S, holder=self._holder
                ).json()
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.LOCKED or not left:
                    raise
                _settle(client, held() - self._count)  # full, though we hold the locks: leftovers
            else:
                self._lease = UUID(answer["lease_id"]) if answer["limits"] else None
                return

    def _keep(self, client: SyncPrefectClient) -> None:
        assert self._lease is not None
        try:
            client.renew_concurrency_lease(self._lease, LEASE_S)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.GONE:
                raise
            self._lease = None  # the server was restarted, or away for longer than the lease
            _settle(client, held() - self._count)
            self._take(client)
        else:
            # A dead holder's lease runs out after its leftovers were given away: then one slot too few is shown.
            _settle(client, held(), raise_it=True)

    def _give_back(self, client: SyncPrefectClient) -> None:
        if self._lease is not None:
            client.release_concurrency_slots_with_lease(self._lease)
        _settle(client, held() - self._count)


def _ensure(client: SyncPrefectClient) -> int:
    gpus = sum(len(uuids) for uuids in machine_gpus().values())
    if gpus:
        client.upsert_global_concurrency_limit_by_name(limit_name(), gpus, slot_decay_per_second=0.0)
    return gpus


def _settle(client: SyncPrefectClient, held_slots: int, *, raise_it: bool = False) -> int:
    """Lower what the limit shows as taken to what is held, or raise it as well; returns how many slots are given back.

    A limit that is not there, or was switched off by a person, is left alone.
    """
    try:
        limit = client.read_global_concurrency_limit_by_name(limit_name())
    except ObjectNotFound:
        return 0
    right = min(max(held_slots, 0), limit.limit)
    if limit.active and (right < limit.active_slots or (raise_it and right > limit.active_slots)):
        client.update_global_concurrency_limit(limit_name(), GlobalConcurrencyLimitUpdate(active_slots=right))
    return max(limit.active_slots - right, 0) if limit.active else 0
