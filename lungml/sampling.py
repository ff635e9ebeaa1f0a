"""Which samples come in which order, so that rare ones are seen as often as common ones?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt


def balanced_order(
    groups: Sequence[npt.NDArray[np.int64]], shares: Sequence[float], samples: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw one epoch: each group fills its share, every member once before any comes again, then all is shuffled.

    Args:
        groups: row numbers of each class.
        shares: of the epoch, one per group, summing to 1.
        samples: rows in the epoch.
        rng: source of the draw.

    Returns:
        (samples,) int64 row numbers.

    Raises:
        ValueError: when a group with a share is empty.
    """
    if not np.isclose(sum(shares), 1):
        raise ValueError(f"shares {tuple(shares)} do not sum to 1")
    counts = np.floor(np.cumsum([0.0, *shares]) * samples + 0.5).astype(int)
    drawn = []
    for number, (group, wanted) in enumerate(zip(groups, np.diff(counts).tolist(), strict=True)):
        if not wanted:
            continue
        if not len(group):
            raise ValueError(f"group {number} of {len(groups)} has no samples, but a share of {shares[number]:.0%}")
        passes = -(-wanted // len(group))
        drawn.append(np.concatenate([rng.permutation(group) for _ in range(passes)])[:wanted])
    return rng.permutation(np.concatenate(drawn)).astype(np.int64)


def batches(order: npt.NDArray[np.int64], batch_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Cut an order into batches; a last one that is not full is left out unless it is the only one."""
    whole = max(len(order) // batch_size * batch_size, min(batch_size, len(order)))
    for start in range(0, whole, batch_size):
        yield order[start : start + batch_size]
