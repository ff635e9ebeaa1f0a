"""Which GPUs does this machine have, which of them may this process use, and which are free?

nvidia-smi is asked, not PyTorch: asking that would take memory of a GPU. A GPU is free when nobody holds the lock on
its file, and the kernel lets go of a lock when its holder dies, however it dies. The files lie in one folder for the
whole machine, whatever the home; containers that share GPUs must share it ($LUNA_GPU_LOCKS names another place).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOCKS = Path("/tmp/luna-gpus")  # of all users of the machine, and gone with a reboot, as the holders are
SMI_TIMEOUT_S = 20.0  # a sleeping driver takes seconds to wake
LISTED = re.compile(r"\s*(?:GPU (\d+):|MIG ).*\(UUID: ((?:GPU|MIG)-[^)\s]+)\)")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one slice of it that was set up as a device of its own (MIG).

    Attributes:
        uuid: as nvidia-smi gives it: CUDA_VISIBLE_DEVICES takes it, and in no order of devices is it another one.
        index: its place among those that this process may use, counted from 0.
    """

    uuid: str
    index: int


def machine_gpus() -> dict[int, tuple[str, ...]]:
    """nvidia-smi's number of each GPU -> its UUID, or those of its slices; empty where there is no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    try:
        answer = subprocess.run([program, "-L"], capture_output=True, text=True, check=True, timeout=SMI_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):  # a driver without a device
        return {}
    found: dict[int, tuple[str, ...]] = {}
    for match in filter(None, map(LISTED.match, answer.stdout.splitlines())):
        if match[1] is not None:
            number = int(match[1])
            found[number] = (match[2],)
        elif found:
            whole = found[number][0].startswith("GPU-")
            found[number] = (match[2],) if whole else (*found[number], match[2])
    return found


def visible_gpus() -> tuple[Gpu, ...]:
    """Those that this process may use, as CUDA_VISIBLE_DEVICES says: numbers are nvidia-smi's, UUIDs may be cut short.

    As CUDA does, the first name that is none ends the list, and of slices a process sees one.
    """
    there = machine_gpus()
    every = [uuid for uuids in there.values() for uuid in uuids]
    chosen, wanted = every, os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None:
        chosen = []
        for name in (part.strip() for part in wanted.split(",")):
            if name.isdigit():
                uuid = there.get(int(name), ("",))[0]
            else:
                uuid = next((uuid for uuid in every if name and uuid.startswith(name)), "")
            if not uuid or uuid in chosen:
                break
            chosen.append(uuid)
    sliced = any(uuid.startswith("MIG-") for uuid in chosen)
    return tuple(Gpu(uuid=uuid, index=index) for index, uuid in enumerate(chosen[:1] if sliced else chosen))


def gpus_here() -> int:
    """How many GPUs this process may use."""
    return len(visible_gpus())


def child_environment(gpus: Sequence[Gpu]) -> Mapping[str, str]:
    """What a child process must have in its environment to see these GPUs alone, as cuda:0, cuda:1, ..."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus)} if gpus else {}


class GpuLocks:
    """The locks on some GPUs, all of them or none."""

    def __init__(self) -> None:
        self._files: list[int] = []

    def take(self, gpus: Sequence[Gpu], count: int) -> tuple[Gpu, ...] | None:
        """Lock `count` of some GPUs, the first that are free; None, and no lock, where fewer are free.

        Raises:
            OSError: the folder of the locks cannot be used.
        """
        taken: list[Gpu] = []
        for gpu in gpus:
            file = _open(gpu.uuid)
            if not _lock(file, fcntl.LOCK_EX):
                os.close(file)
                continue
            self._files.append(file)
            taken.append(gpu)
            if len(taken) == count:
                return tuple(taken)
        self.release()
        return None

    def release(self) -> None:
        """Let go of all."""
        while self._files:
            os.close(self._files.pop())


def held() -> int:
    """How many GPUs of this machine are locked, by whomever."""
    count = 0
    for path in _folder().glob("*.lock"):
        file = _open(path.stem)
        # Shared, so that two who count at once do not count each other.
        count += not _lock(file, fcntl.LOCK_SH)
        os.close(file)
    return count


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _folder() -> Path:
    folder = Path(os.environ.get("LUNA_GPU_LOCKS") or LOCKS)
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # somebody else has just made it
            folder.chmod(0o1777)  # other users' runs lock here, too
    return folder


def _open(uuid: str) -> int:
    path = _folder() / f"{re.sub(r'[^A-Za-z0-9-]', '-', uuid)}.lock"
    try:
        return os.open(path, os.O_RDONLY)  # all that a lock needs, and allowed on another user's file
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
