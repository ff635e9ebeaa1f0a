"""What is drawn of a finished training; the drawing itself is tested with `plots` and `pictures`."""

from __future__ import annotations

import numpy as np
import torch

from lungml import augment, figures
from lungml.pictures import Picture


def picture(uid: str, *center: float) -> Picture:
    index, row, col = center
    return Picture(hu=np.zeros((4, 4)), series_uid=uid, center=(index, row, col), frame="irc")


def test_one_error_is_shown_once() -> None:
    worst, beside, far, other = (
        picture("1.1", 30, 50, 50), picture("1.1", 31, 51, 52), picture("1.1", 30, 50, 70), picture("1.2", 30, 50, 50),
    )  # fmt: skip
    assert figures._apart([worst, beside, far, other]) == [worst, far, other]
    assert figures._apart([]) == []


class Crops:
    """As much of a `CropProblem` as the judged splits need."""

    def predict(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        return {"val": (np.array([0, 1]), np.array([0.25, 0.75])), "test": (np.array([1]), np.array([0.5]))}[split]


def test_both_splits_are_judged() -> None:
    scored = figures.judged(Crops())  # type: ignore[arg-type]
    assert list(scored) == ["val", "test"]
    assert (scored["val"].positives, scored["val"].negatives, scored["val"].auc) == (1, 1, 1.0)
    assert scored["test"].one_class


def test_the_sheets_versions_are_of_the_drawn_samples() -> None:
    """No augmentation: every version is its original."""

    class Slabs:
        def order(self, rng: np.random.Generator, samples: int, epoch: int) -> np.ndarray:
            return np.arange(samples)

        def loaded(self, wanted: list[np.ndarray]):  # type: ignore[no-untyped-def]
            from lungml.loading import Batch

            (rows,) = wanted
            slabs = torch.arange(len(rows))[:, None, None, None].expand(-1, 7, 8, 8).short()
            yield Batch(rows=rows, arrays=(slabs, torch.ones((len(rows), 8, 8), dtype=torch.uint8)))

    slabs, masks = figures._slab_batch(Slabs(), np.random.default_rng(0))  # type: ignore[arg-type]
    assert slabs.shape == (figures.SHEET_ROWS, 7, 8, 8)
    assert masks.shape == (figures.SHEET_ROWS, 1, 8, 8)
    same, _ = augment.augment_slabs(slabs, masks, augment.Augmentation(), torch.Generator())
    assert torch.equal(same, slabs)
