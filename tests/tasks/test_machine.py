"""Samples of a machine whose CPU and GPUs say what the test lets them say."""

from __future__ import annotations

import platform
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tasks import machine
from tasks.machine import Sampler

SMI = """\
NVIDIA H100 80GB HBM3, 555.42, 87, 1000, 80000, 350.5
NVIDIA H100 80GB HBM3 MIG 1g.10gb, 555.42, [N/A], 500, 10000, [N/A]
"""


@pytest.fixture
def fresh() -> Iterator[None]:
    """Find again what a process finds once."""
    machine._lasting.cache_clear()
    yield
    machine._lasting.cache_clear()


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.usefixtures("fresh")
def test_the_environment_names_versions_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    facts = machine.environment()
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == version("torch")
    assert facts["threads"] == str(torch.get_num_threads())
    assert {"numpy", "mlflow", "prefect", "cpu", "cpus", "memory_gb", "platform"} <= facts.keys()
    assert "gpu" not in facts


@pytest.mark.usefixtures("fresh")
def test_gpus_are_named_and_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"/bin/cat <<'E'\n{SMI}E")
    facts = machine.environment()
    assert facts["gpu"] == "NVIDIA H100 80GB HBM3, NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert facts["gpu_driver"] == "555.42"
    samples: list[Mapping[str, float]] = []
    with Sampler(lambda sample, _: samples.append(sample), disk=tmp_path):
        pass
    assert {name: value for name, value in samples[0].items() if name.startswith("gpu_")} == {
        "gpu_0_utilization_percentage": 87.0,
        "gpu_0_memory_usage_megabytes": 1048.6,  # 1000 MiB
        "gpu_0_memory_usage_percentage": 1.2,
        "gpu_0_power_usage_watts": 350.5,
        "gpu_1_memory_usage_megabytes": 524.3,
        "gpu_1_memory_usage_percentage": 5.0,
    }


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found"])
def test_a_driver_without_a_gpu_is_no_gpu(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    assert machine._gpus() == []


def test_requirements_are_lines_of_pip() -> None:
    lines = machine.requirements().splitlines()
    assert f"torch=={machine.environment()['torch']}" in lines
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())


def test_a_short_block_leaves_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([(100.0, 400.0), (101.0, 404.0)])  # of 4 CPU seconds 1 was busy
    monkeypatch.setattr(machine, "_cpu_seconds", lambda: next(clocks))
    seen: list[tuple[float, int]] = []
    with Sampler(lambda s, n: seen.append((s["cpu_utilization_percentage"], n)), disk=tmp_path, first=7):
        pass
    assert seen == [(25.0, 7)]


def test_a_longer_block_leaves_more_and_none_after_its_end(tmp_path: Path) -> None:
    numbers: list[int] = []
    three = threading.Event()

    def hand_on(_: Mapping[str, float], number: int) -> None:
        numbers.append(number)
        if number == 2:
            three.set()

    with suppress(KeyError), Sampler(hand_on, disk=tmp_path, every_s=0.01):
        assert three.wait(30)
        raise KeyError  # an error ends it as well
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 4
    assert not any(t.name == "luna-machine" for t in threading.enumerate())


def test_what_is_sampled_does_not_fail_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tries = threading.Semaphore(0)

    def fail(_: Mapping[str, float], __: int) -> None:
        tries.release()
        raise OSError("database is locked")

    with Sampler(fail, disk=tmp_path, every_s=0.01):
        for _ in range(3):
            assert tries.acquire(timeout=30)
    (record,) = [r for r in caplog.records if r.name == "tasks.machine"]  # said once
    assert record.getMessage() == "a sample of the machine is left out: OSError: database is locked"
