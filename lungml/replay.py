"""How does a training step run on a GPU that Python is too slow to feed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from lungml.loading import Batch
from lungml.tally import Tally

WARM_STEPS = 3  # run as they are, before one is recorded: in the first ones libraries choose and allocate

Gradients = Callable[[Batch], torch.Tensor]


class Noting(Protocol):
    """Who notes in a tally what a batch showed."""

    tally: Tally


class Replay:
    """Steps as one recording of a GPU's work, a CUDA graph: 300 kernels of microseconds start as one.

    The very first steps run as they are; then one is recorded, and from it on all are replays, on the next batch in the
    same memory. Kernels and random numbers are those that would have been started one by one, so the results are equal,
    bit by bit. What Python does within a step is done once only: it must depend on nothing but a batch's shapes.

    Args:
        gradients: the loss of a batch, detached, on the device; puts its gradients in the parameters.
        noting: whose tally `gradients` notes in.
        generator: what `gradients` draws from.
    """

    def __init__(self, gradients: Gradients, noting: Noting, generator: torch.Generator) -> None:
        self._gradients, self._noting, self._generator = gradients, noting, generator
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._arrays: tuple[torch.Tensor, ...] = ()
        self._noted: dict[str, torch.Tensor] = {}
        self._loss = torch.empty(0)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """One step's loss, whose gradients are then in the parameters until the next step."""
        if self._graph is None:
            self._steps += 1
            if self._steps <= WARM_STEPS:
                return self._gradients(batch)
            self._graph = self._record(batch)
        for kept, array in zip(self._arrays, batch.arrays, strict=True):
            kept.copy_(array, non_blocking=True)
        self._graph.replay()
        self._noting.tally.note(**{name: value.clone() for name, value in self._noted.items()})
        return self._loss.clone()

    def _record(self, batch: Batch) -> torch.cuda.CUDAGraph:
        self._arrays = tuple(array.clone() for array in batch.arrays)
        graph, own = torch.cuda.CUDAGraph(), self._noting.tally
        graph.register_generator_state(self._generator)
        self._noting.tally = Tally()
        try:
            # Thread-local: the thread that reads the next batches may go on.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._loss = self._gradients(Batch(rows=batch.rows, arrays=self._arrays))
                self._noted = self._noting.tally.together()
        finally:
            self._noting.tally = own
        return graph
