"""How do time and memory grow with a scan?"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lungml.candidates import GroupingSettings
from lungml.classify import classify
from lungml.findings import Bundle, find_nodules
from lungml.models import place
from lungml.segment import segment
from tests.benchmarks.measure import Row, Settings, compare
from tests.benchmarks.scenes import classifiers, phantom, u_net

CPU = torch.device("cpu")
SLICES, CROPS = (32, 64, 96, 128), (100, 200, 400, 800)


def linear(settings: Settings) -> list[Row]:
    """Time against slices and against candidates; a ratio of 1 is a straight line, below 1 is more than that."""
    hu = phantom((SLICES[-1], 256, 256)).hu
    unet, nodule = place(u_net(hu), CPU), place(classifiers()[0], CPU)
    parts = {count: np.ascontiguousarray(hu[:count]) for count in SLICES}
    centers = places(hu.shape, CROPS[-1])
    return [
        _grows("slices 256x256 segmented", SLICES, lambda count: segment(parts[count], unet), settings.repeats),
        _grows("crops classified", CROPS, lambda count: classify(hu, centers[:count], (nodule,)), settings.repeats),
    ]


def _grows(what: str, sizes: tuple[int, ...], work: Callable[[int], Any], repeats: int) -> Row:
    times = sizes[-1] // sizes[0]
    row = compare(
        f"{sizes[-1]} {what}",
        f"{sizes[0]}, {times} times",
        lambda: work(sizes[-1]),
        lambda: [work(sizes[0]) for _ in range(times)],
        disagree=lambda *_: "",
        repeats=repeats,
    )
    seconds = [median(_seconds(work, size) for _ in range(repeats)) for size in sizes]
    shown = ", ".join(f"{size}: {took:.2f} s" for size, took in zip(sizes, seconds))
    return replace(row, note=f"{shown}; a straight line explains {explained(sizes, seconds):.2%}")


def explained(sizes: npt.ArrayLike, seconds: npt.ArrayLike) -> float:
    """R squared of the straight line of least squares."""
    took = np.asarray(seconds, dtype=np.float64)
    line = np.polynomial.Polynomial.fit(np.asarray(sizes, dtype=np.float64), took, 1)(np.asarray(sizes))
    return 1 - float(((took - line) ** 2).sum() / ((took - took.mean()) ** 2).sum())


def _seconds(work: Callable[[int], Any], size: int) -> float:
    start = time.perf_counter()
    work(size)
    return time.perf_counter() - start


def places(shape: tuple[int, ...], count: int) -> npt.NDArray[np.float64]:
    """Seeded voxels whose crops lie in the scan, (count, 3)."""
    low = np.array([16, 24, 24])
    return np.random.default_rng(6).integers(low, np.array(shape) - low, (count, 3)).astype(np.float64)


def scan_memory(size: tuple[int, int, int]) -> str:
    """How much memory one scan takes beyond itself and the networks, in words; measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        before, peak = process.submit(_scan_memory, size).result()
    if not peak:
        return "memory not measured: this system does not tell"
    return f"memory at most {peak - before:.2f} GB more than the {before:.2f} GB before"


def _scan_memory(size: tuple[int, int, int]) -> tuple[float, float]:
    """GB held before a scan is read, networks and voxels included, and at most meanwhile; zeros where none tells."""
    scan = phantom(size)
    nets = [place(net, CPU) for net in (u_net(scan.hu), *classifiers())]
    bundle = Bundle(segmentation=nets[0], nodule=nets[1], malignancy=nets[2], grouping=GroupingSettings(rule="report"))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    except OSError:
        return 0.0, 0.0
    before = _held("VmRSS")
    find_nodules(scan.hu, scan.grid, bundle)
    return before, _held("VmHWM")


def _held(name: str) -> float:
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return next(int(line[1]) for line in lines if line[0] == f"{name}:") / 2**20
