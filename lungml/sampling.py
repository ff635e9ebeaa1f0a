"""Which samples come in which order, so that rare ones are seen as often as common ones?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class NegativePlan:
    """Which of a training scan's non-nodules are cut and kept, and which of them an epoch draws from.

    Validation and test scans always keep all of theirs. A kept crop of 32 x 48 x 48 int16 takes 147 KB.

    Attributes:
        kind: "all" keeps every one, and each epoch draws from all. "fixed" keeps one seeded sample of a scan, and each
            epoch draws from all of it. "per_epoch" keeps several samples, and each epoch draws from another one.
        per_scan: non-nodules of one sample of a scan; 0 for "all".
        epochs: samples of a scan that are kept, for "per_epoch"; later epochs see them again.
    """

    kind: Literal["all", "fixed", "per_epoch"] = "all"
    per_scan: int = 0
    epochs: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("all", "fixed", "per_epoch"):
            raise ValueError(f"no plan for negatives is called {self.kind!r}; choose all, fixed or per_epoch")
        if (self.per_scan < 1) != (self.kind == "all") or self.per_scan < 0:
            raise ValueError(f"{self.per_scan} negatives per scan do not go with the plan {self.kind!r}")
        if self.epochs < 1 or (self.epochs > 1 and self.kind != "per_epoch"):
            raise ValueError(f"samples for {self.epochs} epochs do not go with the plan {self.kind!r}")

    @property
    def kept_per_scan(self) -> int | None:
        """How many negatives of a training scan are kept at most; None keeps all."""
        return None if self.kind == "all" else self.per_scan * self.epochs


def kept_negatives(total: int, plan: NegativePlan, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which negatives of one training scan are cut, as positions in the scan's own list.

    The order is that of their slots: the first `plan.per_scan` are the first epoch's, and so on. A larger sample of
    the same generator begins with the smaller one.

    Args:
        total: negatives of the scan.
        plan: what the recipe asks for.
        rng: of this scan alone, so that other scans change nothing; not drawn from by the plan "all".

    Returns:
        (min(total, plan.kept_per_scan),) int64; of the plan "all" 0 .. total - 1.
    """
    if plan.kept_per_scan is None:
        return np.arange(total, dtype=np.int64)
    return rng.permutation(total)[: plan.kept_per_scan]


def seen_in_epoch(scans: npt.NDArray[np.int64], plan: NegativePlan, epoch: int, wanted: int) -> npt.NDArray[np.bool_]:
    """Which kept negatives an epoch draws from: of a scan with n of them slots e * k .. (e + 1) * k, modulo n.

    k is `plan.per_scan`, or more where there are so few scans that it would not give `wanted` negatives.

    Args:
        scans: (n,) ascending: the scan each negative comes from; within a scan they stand in the order of slots.
        plan: what the recipe asks for.
        epoch: from 1 on; e above is one less.
        wanted: negatives the epoch will draw.

    Returns:
        (n,) bool; all true unless the plan is "per_epoch".
    """
    if plan.kind != "per_epoch" or not len(scans):
        return np.ones(len(scans), dtype=np.bool_)
    _, first, of, counts = np.unique(scans, return_index=True, return_inverse=True, return_counts=True)
    width = max(plan.per_scan, -(-wanted // len(counts)))
    slots = np.arange(len(scans)) - first[of]
    return (slots - (epoch - 1) * width) % counts[of] < width


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
