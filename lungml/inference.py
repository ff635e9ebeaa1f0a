"""What may be done to read a scan faster, and how does a network then run?"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args
from weakref import WeakSet

import torch
from torch import nn

from lungml.devices import Precision
from lungml.errors import LunaError, one_line
from lungml.models.folded import FoldedUNet
from lungml.models.unet import UNet

log = logging.getLogger(__name__)
Network = Callable[[torch.Tensor], torch.Tensor]  # pictures or crops in, float32 logits out
LARGEST_KEPT = (32 << 20) - 8192  # bytes: larger blocks glibc maps and unmaps each time (DEFAULT_MMAP_THRESHOLD_MAX)
_not_compiled: WeakSet[nn.Module] = WeakSet()  # tried in vain, and said so


class InferenceError(LunaError):
    """No scan can be read with these settings."""


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """What is done to be faster than float32 on the full field. JSON-able by `dataclasses.asdict`.

    Attributes:
        precision: "fp32", or "bf16" for bfloat16 where autocast thinks it safe: on a CPU in half the time. It moves
            the classifiers' probabilities by up to 0.02, and of the voxels that the U-Net marks one in a hundred,
            with which candidates come, go and move: findings are not the same.
        compiled: run the networks as graphs of `torch.compile`; the first scan waits for the compiler. On a CPU it
            needs a C++ compiler and is no faster than the U-Net's own inference form (`FoldedUNet`). Where a graph
            cannot be had, that is said in one line and the network runs as it is.
        lungs_only: segment the lungs and a margin around them, where `lungml.lungs.lung_field` trusts what it finds;
            else the full field, which is said in one line. In the field probabilities are the same, and so are
            candidates whose voxels do not leave the boxes that are segmented around it. Outside nothing is found,
            true or false.
        margin_mm: around the lungs. What lies on the pleura is outside of what looks like lung: nodules have up to
            30 mm, so that the centre of one which touches the lung is not further from it than half of that.
    """

    precision: Precision = "fp32"
    compiled: bool = False
    lungs_only: bool = False
    margin_mm: float = 15.0

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise InferenceError(f"unknown precision {self.precision!r}; choose one of {choices}")
        for name in ("compiled", "lungs_only"):
            if not isinstance(getattr(self, name), bool):
                raise InferenceError(f"{name} {getattr(self, name)!r} is neither true nor false")
        if not isinstance(self.margin_mm, int | float) or not 0 <= self.margin_mm < math.inf:
            raise InferenceError(f"margin_mm {self.margin_mm!r} is no distance; give 0 mm or more")


@contextmanager
def float32_products() -> Iterator[None]:
    """On a GPU, too, float32 is float32 inside the block; a decorator as well.

    PyTorch's default there rounds what convolutions multiply to ten bits (TF32). On a real scan that made 722 of 728
    candidates; without it they are the CPU's, for 0.2 s more a scan of 250 slices.
    """
    kinds: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    try:
        yield
    finally:
        for kind, allowed in zip(kinds, before):
            kind.allow_tf32 = allowed


def prepare(model: nn.Module, inference: InferenceSettings) -> Network:
    """The network as it runs under these settings; it may be called again and again, by one thread.

    Args:
        model: in eval mode; a later change of its weights is not seen.
        inference: precision and compiled are heeded here.
    """
    device = next(model.parameters()).device
    half = inference.precision == "bf16"
    if device.type == "cpu":
        keep_freed_memory()
    if type(model).forward is UNet.forward and not inference.compiled:
        return FoldedUNet(model, torch.bfloat16 if half else torch.float32)  # type: ignore[arg-type]
    network = _compile(model, device) if inference.compiled else model

    def run(x: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return network(x.contiguous(memory_format=layout)).float()

    return run


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MB for the next layer instead of handing them back page by page.

    It raises its limits when a block is freed that it had mapped. Untouched blocks cost nothing; of three at least one
    is mapped, since freed memory beyond twice the limit is not kept. Elsewhere this does nothing. Without it page
    faults take up to a quarter of a U-Net's time, depending on what the process did before.
    """
    blocks = [torch.empty(LARGEST_KEPT, dtype=torch.uint8) for _ in range(3)]
    del blocks


def _compile(model: nn.Module, device: torch.device) -> Network:
    """The model's graph, compiled when it is first called; the model itself where that cannot be done."""
    if model in _not_compiled:
        return model
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        _not_compiled.add(model)
        log.warning("%s is not compiled: no C++ compiler; install g++, or switch compiled off", type(model).__name__)
        return model
    graph: Network = torch.compile(model)  # PyTorch keeps what it compiled and finds it again

    def run(x: torch.Tensor) -> torch.Tensor:
        if model not in _not_compiled:
            try:
                return graph(x)
            except Exception as error:  # compilers and drivers fail in all ways; the model itself says what is wrong
                _not_compiled.add(model)
                why = next(iter(str(error).strip().splitlines()), type(error).__name__)
                log.warning("%s is not compiled: %s", type(model).__name__, one_line(why))
        return model(x)

    return run
