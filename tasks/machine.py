"""What does a run run on, and how busy is it? Asked of psutil and nvidia-smi: asking PyTorch would take the GPU."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType

import psutil
import torch

log = logging.getLogger(__name__)

NAMED_PACKAGES = ("torch", "numpy", "mlflow", "prefect", "luna-pipeline")
GPU_FIELDS = "name,driver_version,utilization.gpu,memory.used,memory.total,power.draw"
SMI_TIMEOUT_S = 5.0
MIB = 2**20 / 1e6  # nvidia-smi says MiB, MLflow's own system metrics are megabytes


def environment() -> dict[str, str]:
    """What decides how a run goes beside code and data: versions, machine, GPUs, and PyTorch's threads as of now."""
    return {**_lasting(), "threads": str(torch.get_num_threads())}


@cache
def _lasting() -> dict[str, str]:
    """What stays the same while a process lives, found once."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": str(os.cpu_count()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.1f}",
    }
    for package in NAMED_PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a folder that was not installed
            continue
    gpus = _gpus()
    if gpus:
        facts["gpu"] = ", ".join(gpu["name"] for gpu in gpus)
        facts["gpu_driver"] = gpus[0]["driver_version"]
    return facts


@cache
def requirements() -> str:
    """The installed distributions as lines of a requirements.txt, sorted; found once per process."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower))


class Sampler:
    """Samples the machine now and then while its `with` block runs, and once more at the end of it.

    A block shorter than the interval leaves that one sample. A sample that cannot be taken or handed on is said once
    and left out: what is sampled never fails for it. CPU use is the mean since the sample before.

    Args:
        hand_on: called with a sample and its number, from a thread of its own but for the last.
        disk: whose free space is told.
        first: number of the first sample.
        every_s: seconds between samples.
    """

    def __init__(
        self,
        hand_on: Callable[[Mapping[str, float], int], None],
        *,
        disk: Path,
        first: int = 0,
        every_s: float = 10.0,
    ) -> None:
        self._hand_on, self._disk, self._number, self._every_s = hand_on, disk, first, every_s
        self._cpu = _cpu_seconds()
        self._done = threading.Event()
        self._said = False
        # A daemon: a process that is told to go does not wait for a sample.
        self._thread = threading.Thread(target=self._run, name="luna-machine", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=self._every_s + SMI_TIMEOUT_S)
        if not self._thread.is_alive():  # else it still hangs in its own hand-over, and this one would too
            self._sample()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        try:
            self._hand_on(self._read(), self._number)
            self._number += 1
        except Exception as problem:
            if not self._said:
                log.warning("a sample of the machine is left out: %s: %s", type(problem).__name__, problem)
            self._said = True

    def _read(self) -> dict[str, float]:
        before, self._cpu = self._cpu, _cpu_seconds()
        busy, total = (now - then for now, then in zip(self._cpu, before))
        memory = psutil.virtual_memory()
        values = {
            "system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": _own_memory() / 1e6,
            "disk_available_megabytes": shutil.disk_usage(self._disk).free / 1e6,
        }
        if total > 0:
            values["cpu_utilization_percentage"] = 100 * busy / total
        for number, gpu in enumerate(_gpus()):
            values |= {f"gpu_{number}_{name}": value for name, value in _gpu_values(gpu).items()}
        return {name: round(value, 1) for name, value in values.items()}


def _cpu_seconds() -> tuple[float, float]:
    """Busy and all seconds of all CPUs since the machine started; psutil.cpu_percent keeps one answer per process."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # Linux counts them as user's as well
    return sum(times) - guest - idle, sum(times) - guest


def _own_memory() -> int:
    """Bytes held by this process and its children; shared pages count in each."""
    this = psutil.Process()
    held = 0
    for process in (this, *this.children(recursive=True)):
        try:
            held += process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
    return held


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _gpus() -> list[dict[str, str]]:
    """`GPU_FIELDS` of each NVIDIA GPU; none where there is no nvidia-smi or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=SMI_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):  # a driver without a device
        return []
    names = GPU_FIELDS.split(",")
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.strip()]
    return [dict(zip(names, row)) for row in rows if len(row) == len(names)]


def _gpu_values(gpu: Mapping[str, str]) -> dict[str, float]:
    """The numbers among a GPU's fields; a part of a GPU (MIG) has no use of its own and says [N/A]."""
    numbers = {}
    for field, text in gpu.items():
        try:
            numbers[field] = float(text)
        except ValueError:
            continue
    values = {}
    if "utilization.gpu" in numbers:
        values["utilization_percentage"] = numbers["utilization.gpu"]
    if "memory.used" in numbers:
        values["memory_usage_megabytes"] = numbers["memory.used"] * MIB
        if numbers.get("memory.total"):
            values["memory_usage_percentage"] = 100 * numbers["memory.used"] / numbers["memory.total"]
    if "power.draw" in numbers:
        values["power_usage_watts"] = numbers["power.draw"]
    return values
