from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from lungml.loading import AHEAD, DeviceBatches, read_ahead

CPU = torch.device("cpu")
ROWS = np.random.default_rng(0).integers(-1000, 1000, (20, 2, 3), dtype=np.int16)
MASKS = (ROWS > 0).astype(np.uint8)[:, 0]


class FakeCache:
    """Stands in for a CropCache: this file's GPU test runs where zarr is not installed."""

    def __init__(self) -> None:
        self.arrays = {"slabs": ROWS, "masks": MASKS}
        self.read: list[list[int]] = []

    def nbytes(self, name: str) -> int:
        return self.arrays[name].nbytes

    def batch(self, name: str, wanted: np.ndarray, *, pinned: bool = False) -> torch.Tensor:
        self.read.append(wanted.tolist())
        found = torch.from_numpy(self.arrays[name][wanted])
        return found.pin_memory() if pinned else found

    def resident(self, name: str, device: torch.device, budget_bytes: int) -> torch.Tensor | None:
        fits = self.nbytes(name) <= budget_bytes
        return torch.from_numpy(self.arrays[name]).to(device) if fits else None


def wanted(batches: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.permutation(20)[:4] for _ in range(batches)]


def check_batches(device: torch.device, budget_bytes: int | None, *, resident: bool) -> None:
    ready = DeviceBatches(FakeCache(), ["slabs", "masks"], device, budget_bytes=budget_bytes)
    assert ready.is_resident == resident
    for _ in range(2):  # epoch after epoch
        found = list(ready(wanted()))
        assert len(found) == 8
        for batch, rows in zip(found, wanted()):
            slabs, masks = batch.arrays
            assert (slabs.device.type, slabs.dtype, masks.dtype) == (device.type, torch.int16, torch.uint8)
            np.testing.assert_array_equal(batch.rows, rows)
            np.testing.assert_array_equal(slabs.cpu(), ROWS[rows])
            np.testing.assert_array_equal(masks.cpu(), MASKS[rows])


@pytest.mark.parametrize(
    ("budget_bytes", "resident"),
    [(None, False), (0, False), (ROWS.nbytes + MASKS.nbytes - 1, False), (ROWS.nbytes + MASKS.nbytes, True)],
)
def test_batches_hold_the_wanted_rows_wherever_they_come_from(budget_bytes: int | None, resident: bool) -> None:
    check_batches(CPU, budget_bytes, resident=resident)


@pytest.mark.gpu
@pytest.mark.parametrize(("budget_bytes", "resident"), [(None, True), (0, False)])
def test_batches_on_a_gpu(budget_bytes: int | None, resident: bool) -> None:
    check_batches(torch.device("cuda"), budget_bytes, resident=resident)


def test_the_next_batches_are_read_while_one_is_in_use() -> None:
    cache = FakeCache()
    batches = DeviceBatches(cache, ["slabs"], CPU)(wanted())
    next(batches)
    batches.close()  # waits for what is being read
    assert len(cache.read) <= 1 + AHEAD
    assert cache.read == [rows.tolist() for rows in wanted()][: len(cache.read)]


def test_reading_ahead_keeps_the_order_and_its_bound() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    found = []
    for square in read_ahead(lambda n: n * n, items(), ahead=3):
        found.append(square)
        assert len(taken) <= len(found) + 3
    assert found == [n * n for n in range(10)]
    assert list(read_ahead(lambda n: n, [])) == []


def test_reading_really_happens_ahead() -> None:
    second_read = threading.Event()

    def read(number: int) -> int:
        if number == 1:
            second_read.set()
        return number

    reading = read_ahead(read, range(5))
    assert next(reading) == 0
    assert second_read.wait(timeout=10)  # nobody has asked for it yet
    reading.close()


def test_an_error_is_raised_where_its_item_belongs() -> None:
    def read(number: int) -> int:
        if number == 2:
            raise OSError("the disk is gone")
        return number

    reading = read_ahead(read, range(6))
    assert [next(reading), next(reading)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(reading)


def test_closing_ends_the_thread() -> None:
    reading = read_ahead(lambda n: n, range(1000))
    next(reading)
    assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    reading.close()
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
