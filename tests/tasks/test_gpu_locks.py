"""GPUs that a script named nvidia-smi makes up, and who holds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import gpu_locks
from tasks.gpu_locks import Gpu, GpuLocks, child_environment, gpus_here, held, visible_gpus
from tests.tasks.gpu_machine import TWO, put_smi

SLICED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-0)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111-0)
  MIG 3g.40gb     Device  1: (UUID: MIG-2222-0)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-1)
"""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUNA_GPU_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "locks"


@pytest.mark.parametrize("script", ["exit 9", "echo No devices found.", ": nothing is said"])
def test_a_driver_without_a_device_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    put_smi(tmp_path, monkeypatch, script=script)
    assert gpus_here() == 0


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpus_here() == 0
    assert child_environment(()) == {}


@pytest.mark.parametrize(
    ("said", "uuids"),
    [
        (None, ["GPU-aaaa-0", "GPU-bbbb-1"]),
        ("", []),
        ("1", ["GPU-bbbb-1"]),
        ("1,0", ["GPU-bbbb-1", "GPU-aaaa-0"]),
        (" GPU-bb ", ["GPU-bbbb-1"]),
        ("1,7,0", ["GPU-bbbb-1"]),
        ("-1,0", []),
        ("NoDevFiles", []),
    ],
)
def test_what_cuda_sees_is_what_we_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, uuids: list[str]
) -> None:
    put_smi(tmp_path, monkeypatch, listing=TWO)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible_gpus() == tuple(Gpu(uuid=uuid, index=place) for place, uuid in enumerate(uuids))
    assert gpus_here() == len(uuids)


def test_slices_stand_for_their_gpu_and_a_process_sees_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_smi(tmp_path, monkeypatch, listing=SLICED)
    assert gpu_locks.machine_gpus() == {0: ("MIG-1111-0", "MIG-2222-0"), 1: ("GPU-bbbb-1",)}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-2222-0,MIG-1111-0")
    assert [gpu.uuid for gpu in visible_gpus()] == ["MIG-2222-0"]


def test_a_child_sees_the_held_ones_by_uuid() -> None:
    assert child_environment((Gpu(uuid="GPU-b", index=1), Gpu(uuid="GPU-a", index=0))) == {
        "CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a"
    }


def test_all_are_taken_or_none() -> None:
    gpus = [Gpu(uuid=f"GPU-{n}", index=n) for n in range(3)]
    first, second, third = GpuLocks(), GpuLocks(), GpuLocks()
    assert first.take(gpus, 2) == (gpus[0], gpus[1])
    assert held() == 2
    assert second.take(gpus, 2) is None
    assert held() == 2  # the third was let go of again
    assert third.take(gpus, 1) == (gpus[2],)
    first.release()
    assert second.take(gpus, 2) == (gpus[0], gpus[1])
    second.release()
    third.release()
    assert held() == 0


def test_kill_frees_at_once(locks: Path) -> None:
    script = (
        "import time; from tasks.gpu_locks import *; l = GpuLocks(); l.take([Gpu(uuid='GPU-0', index=0)], 1);"
        "print('held', flush=True); time.sleep(100)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    gpu = Gpu(uuid="GPU-0", index=0)
    ours = GpuLocks()
    assert ours.take([gpu], 1) is None
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert ours.take([gpu], 1) == (gpu,)
    ours.release()


def test_another_users_lock_file_will_do(locks: Path) -> None:
    gpu, ours = Gpu(uuid="GPU-0", index=0), GpuLocks()
    ours.take([gpu], 1)
    ours.release()
    (locks / "GPU-0.lock").chmod(0o444)  # as another user's is to us: to be read, no more
    assert ours.take([gpu], 1) == (gpu,)
    ours.release()
    assert locks.stat().st_mode & 0o7777 == 0o1777
