"""How does the next batch reach the device while the network is still busy with this one?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from lungml.devices import send

if TYPE_CHECKING:
    from lungml.crop_cache import CropCache

AHEAD = 2  # batches that are read while one is in use: one ready, one on its way

Wanted = TypeVar("Wanted")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of a crop cache, on a device.

    Attributes:
        rows: (n,) int64 row numbers.
        arrays: of each array (n, ...), in its own dtype: whoever wants floats makes them on the device.
    """

    rows: npt.NDArray[np.int64]
    arrays: tuple[torch.Tensor, ...]


class DeviceBatches:
    """Batches of some arrays of a crop cache on a device, ready before they are asked for.

    Arrays that fit the budget all together are copied to the device once, and batches are gathered there. Else a
    thread reads the next batches while this one is in use; to a GPU they travel from page-locked memory on a stream
    of their own. Values are the same either way, bit by bit.

    Args:
        cache: holds the arrays.
        names: which of them.
        device: where the batches are wanted.
        budget_bytes: what the arrays may take of the device's memory; when None, half of what a GPU has free, and
            nothing on the CPU, whose memory holds the files already.
    """

    def __init__(
        self, cache: CropCache, names: Sequence[str], device: torch.device, *, budget_bytes: int | None = None
    ) -> None:
        self._cache, self._names, self._device = cache, tuple(names), device
        on_gpu = device.type == "cuda"
        if budget_bytes is None:
            budget_bytes = torch.cuda.mem_get_info(device)[0] // 2 if on_gpu else 0
        self._resident: tuple[torch.Tensor, ...] = ()
        if 0 < sum(cache.nbytes(name) for name in names) <= budget_bytes:
            wholes = (cache.resident(name, device, budget_bytes) for name in names)
            self._resident = tuple(whole for whole in wholes if whole is not None)
        self._stream = torch.cuda.Stream(device) if on_gpu and not self._resident else None

    @property
    def is_resident(self) -> bool:
        """Whether the arrays lie on the device as a whole."""
        return bool(self._resident)

    def __call__(self, wanted: Iterable[npt.NDArray[np.int64]]) -> Generator[Batch, None, None]:
        """The batches at those rows, in that order; close the generator if you do not exhaust it."""
        if self._resident:
            return self._gathered(wanted)
        return self._read_ahead(wanted)

    def _gathered(self, wanted: Iterable[npt.NDArray[np.int64]]) -> Generator[Batch, None, None]:
        for rows in wanted:
            there = send(rows, self._device)
            yield Batch(rows=rows, arrays=tuple(whole.index_select(0, there) for whole in self._resident))

    def _read_ahead(self, wanted: Iterable[npt.NDArray[np.int64]]) -> Generator[Batch, None, None]:
        reading = read_ahead(self._read, wanted)
        try:
            for batch, copied in reading:
                if copied is not None:
                    stream = torch.cuda.current_stream(self._device)
                    stream.wait_event(copied)
                    for array in batch.arrays:
                        array.record_stream(stream)  # its memory is not given away while this stream uses it
                yield batch
        finally:
            reading.close()

    def _read(self, rows: npt.NDArray[np.int64]) -> tuple[Batch, torch.cuda.Event | None]:
        """One batch, and when its way to a GPU is over; runs in the reading thread."""
        arrays = tuple(self._cache.batch(name, rows, pinned=self._stream is not None) for name in self._names)
        if self._stream is None:
            return Batch(rows=rows, arrays=tuple(array.to(self._device) for array in arrays)), None
        with torch.cuda.stream(self._stream):
            # PyTorch keeps page-locked memory that was let go for the next batch, but not before its copy is over.
            moved = tuple(array.to(self._device, non_blocking=True) for array in arrays)
            return Batch(rows=rows, arrays=moved), self._stream.record_event()


def read_ahead(
    read: Callable[[Wanted], Found], wanted: Iterable[Wanted], *, ahead: int = AHEAD
) -> Generator[Found, None, None]:
    """Yield what `read` makes of each item, in order, with the next ones being read in one thread.

    An error of `read` is raised where its item would have been yielded. Closing the generator waits for the item that
    is being read, drops the others and ends the thread.

    Args:
        read: runs in the thread.
        wanted: items; taken from in the caller's thread, `ahead` of what is yielded.
        ahead: items read and not yet yielded.
    """
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        try:
            for item in wanted:
                waiting.append(thread.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
