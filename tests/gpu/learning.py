"""How well does a training use its device? The problems of the recipes on random arrays, and what is measured of them.

Imports what a GPU machine has: torch, numpy and those modules of lungml that import nothing else. The losses are the
recipes' own, written down again, since the recipes also read stores.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lungml.augment import augment_crops, augment_slabs, report_classification, report_segmentation
from lungml.loading import Batch, DeviceBatches, send
from lungml.losses import report_segmentation_loss
from lungml.sampling import balanced_order
from lungml.tally import Tally

WINDOW = 64


class MemoryCache:
    """Arrays in memory behind the part of `CropCache` that `DeviceBatches` uses."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._arrays = dict(arrays)

    def nbytes(self, name: str) -> int:
        return self._arrays[name].nbytes

    def batch(self, name: str, wanted: npt.NDArray[np.int64], *, pinned: bool = False) -> torch.Tensor:
        found = torch.from_numpy(self._arrays[name][wanted])
        return found.pin_memory() if pinned else found

    def resident(self, name: str, device: torch.device, budget_bytes: int) -> torch.Tensor | None:
        return torch.from_numpy(self._arrays[name]).to(device) if self.nbytes(name) <= budget_bytes else None


@cache  # a second for the thousands of the GPU tests; nobody writes to them
def random_crops(count: int, shape: tuple[int, int, int] = (32, 48, 48), seed: int = 0) -> npt.NDArray[np.int16]:
    """(count, *shape) int16 HU; every second one holds a bright box, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    crops = rng.integers(-1000, -600, (count, *shape), dtype=np.int16)
    middle = tuple(slice(side // 2 - 3, side // 2 + 3) for side in shape)
    crops[(slice(None, None, 2), *middle)] = 100
    return crops


@cache
def random_slabs(count: int, side: int = 96, seed: int = 0) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """(count, 7, side, side) int16 HU with a bright box in the middle, and its masks (count, side, side) uint8."""
    slabs = np.random.default_rng(seed).integers(-1000, -600, (count, 7, side, side), dtype=np.int16)
    middle = slice(side // 2 - 4, side // 2 + 4)
    slabs[:, :, middle, middle] = 100
    masks = np.zeros((count, side, side), np.uint8)
    masks[:, middle, middle] = 1
    return slabs, masks


class _Learning:
    """A `Problem` of `lungml.fit` without validation."""

    def __init__(
        self, model: nn.Module, arrays: Mapping[str, npt.NDArray[Any]], *, budget_bytes: int | None, layout: Any
    ) -> None:
        self.model, self.tally, self.layout = model, Tally(), layout
        self.device = next(model.parameters()).device
        self._count = len(next(iter(arrays.values())))
        self.batches = DeviceBatches(
            MemoryCache(arrays),  # type: ignore[arg-type]
            list(arrays),
            self.device,
            budget_bytes=budget_bytes,
        )

    def order(self, rng: np.random.Generator, samples: int, epoch: int) -> npt.NDArray[np.int64]:
        return balanced_order([np.arange(self._count)], [1.0], samples, rng)

    def loaded(self, wanted: Iterable[npt.NDArray[np.int64]]) -> Generator[Batch, None, None]:
        return self.batches(wanted)

    def train_mode(self) -> None:
        self.model.train()

    def train_metrics(self, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        return {}

    def evaluate(self, split: str) -> dict[str, float]:
        return {"f1": 1.0}


class Crops(_Learning):
    """As `recipes.classification.CropProblem` learns; even rows are nodules."""

    def __init__(
        self,
        model: nn.Module,
        crops: npt.NDArray[np.int16],
        *,
        budget_bytes: int | None = None,
        layout: Any = torch.channels_last_3d,
    ) -> None:
        super().__init__(model, {"crops": crops}, budget_bytes=budget_bytes, layout=layout)
        self.augmentation = report_classification()

    def loss(
        self, net: Callable[[torch.Tensor], torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> torch.Tensor:
        crops = augment_crops(batch.arrays[0].float()[:, None], self.augmentation, generator)
        target = send(1 - batch.rows % 2, self.device)
        logits = net(crops.contiguous(memory_format=self.layout))
        self.tally.note(targets=target, probs=torch.softmax(logits.detach(), dim=1)[:, 1])
        return cross_entropy(logits, target)


class Windows(_Learning):
    """As `recipes.segmentation.SegmentationProblem` learns."""

    replays = True

    def __init__(
        self,
        model: nn.Module,
        slabs: npt.NDArray[np.int16],
        masks: npt.NDArray[np.uint8],
        *,
        budget_bytes: int | None = None,
        layout: Any = torch.channels_last,
    ) -> None:
        super().__init__(model, {"slabs": slabs, "masks": masks}, budget_bytes=budget_bytes, layout=layout)
        self.augmentation = report_segmentation()
        self.loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = report_segmentation_loss

    def loss(
        self, net: Callable[[torch.Tensor], torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> torch.Tensor:
        slabs, masks = (cut.float() for cut in self._windows(batch.arrays[0], batch.arrays[1][:, None], generator))
        slabs, masks = augment_slabs(slabs, masks, self.augmentation, generator)
        logits = net(slabs.contiguous(memory_format=self.layout))
        flagged, there = logits.detach() > 0, masks > 0.5
        self.tally.note(counts=torch.stack([(flagged & there).sum(), flagged.sum(), there.sum()])[None])
        return self.loss_of(logits, masks)

    def _windows(
        self, slabs: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        side = slabs.shape[-1]
        drawn = torch.randint(0, side - WINDOW, (len(slabs), 2), generator=generator, device=generator.device)
        offsets, steps = drawn.to(slabs.device), torch.arange(WINDOW, device=slabs.device)
        rows, cols = offsets[:, :1] + steps, offsets[:, 1:] + steps
        flat = (rows[:, :, None] * side + cols[:, None]).flatten(1)[:, None]
        slabs, masks = (
            planes.flatten(2).gather(2, flat.expand(-1, planes.shape[1], -1)).unflatten(2, (WINDOW, WINDOW))
            for planes in (slabs, masks)
        )
        return slabs, masks


def wait_for(device: torch.device) -> None:
    """Let everything that was sent to the device come to its end."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """How long some work takes, on the device too."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def busy_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long at least one computation ran on the device while some work was done; copies do not count.

    The profiler slows the CPU's side down: what this is a share of is timed without it.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as traced:
        seconds_of(work, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        traced.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    kind = "kernel" if on_gpu else "cpu_op"
    spans = [(float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events if e.get("cat") == kind and "dur" in e]
    return covered(spans) / 1e6


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of some intervals."""
    total, end = 0.0, -np.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return float(total)


def flops_per_sample(learning: Crops | Windows, batch_size: int) -> float:
    """Floating point operations of convolutions and matrix products, forwards and backwards, of one sample."""
    rows = np.arange(batch_size)
    batch = next(iter(learning.loaded([rows])))
    counter = FlopCounterMode(display=False)
    with counter:
        learning.loss(learning.model, batch, torch.Generator(learning.device).manual_seed(0)).backward()
    learning.model.zero_grad(set_to_none=True)
    learning.tally.clear()
    return counter.get_total_flops() / batch_size


def peak_flops(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """Operations a second of a large matrix product: what this device gives at best in this precision."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    one @ other
    return 2 * side**3 / min(seconds_of(lambda: one @ other, device) for _ in range(5))


def peak_memory_gb(device: torch.device) -> float:
    """Of the device's memory since the last reset; NaN on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
