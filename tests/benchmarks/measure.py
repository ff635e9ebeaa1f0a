"""How much faster is one way than another, and do both give the same answer?"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Attributes:
        repeats: timed pairs; one more, untimed, goes before them for the check.
        full: the whole scan has LUNA16's size instead of a quarter of its area and half its slices.
        folder: an empty folder for files, removed by whoever made it.
    """

    repeats: int = 3
    full: bool = False
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; everything in it was measured in this process.

    Attributes:
        stage: what is timed.
        peer: who else does it.
        ours_s, peer_s: medians, seconds; None when the answers disagree.
        ratio: median over the pairs of peer / ours: above 1 ours is faster.
        ratio_range: the smallest and the largest over the pairs; far apart on a busy machine.
        floor_s: median of what cannot be avoided, seconds; None when no floor is known.
        note: how far the answers agree and what else a reader should know.
        disagreement: why there is no ratio; empty when the answers agree.
        skipped: why nothing was measured; empty when it was.
    """

    stage: str
    peer: str
    ours_s: float | None = None
    peer_s: float | None = None
    ratio: float | None = None
    ratio_range: tuple[float, float] | None = None
    floor_s: float | None = None
    note: str = ""
    disagreement: str = ""
    skipped: str = ""


def skipped(stage: str, peer: str, why: str) -> Row:
    """A row that cannot be measured here."""
    return Row(stage=stage, peer=peer, skipped=why)


def compare(
    stage: str,
    peer: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    disagree: Callable[[Any, Any], str],
    repeats: int,
    floor: Callable[[], Any] | None = None,
    before: Callable[[], Any] | None = None,
    note: str = "",
) -> Row:
    """Check that both answers agree, then time them in turns: ours, peer, ours, peer.

    The check is also the warm-up: files are in the page cache and lazy imports are done before anything is timed.

    Args:
        stage: what is timed.
        peer: its name.
        ours, theirs: called without arguments; everything they do counts.
        disagree: takes both answers and says what is wrong, or nothing.
        repeats: timed pairs.
        floor: timed after each pair.
        before: called before each side, untimed.
        note: for the table.
    """
    before = before or (lambda: None)
    before()
    answer = ours()
    before()
    wrong = disagree(answer, theirs())
    del answer
    if wrong:
        return Row(stage=stage, peer=peer, note=note, disagreement=wrong)
    if floor:
        floor()
    pairs = []
    gc.collect()
    gc.freeze()  # walking the objects of every imported library takes longer than most of what is timed
    try:
        for _ in range(repeats):
            before()
            ours_s = _seconds(ours)
            before()
            pairs.append((ours_s, _seconds(theirs), _seconds(floor) if floor else 0.0))
    finally:
        gc.unfreeze()
    ratios = [pair[1] / pair[0] for pair in pairs]
    return Row(
        stage=stage,
        peer=peer,
        ours_s=median(pair[0] for pair in pairs),
        peer_s=median(pair[1] for pair in pairs),
        ratio=median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        floor_s=median(pair[2] for pair in pairs) if floor else None,
        note=note,
    )


def unequal(one: npt.ArrayLike, other: npt.ArrayLike) -> str:
    """What keeps two arrays from holding the same values; dtypes may differ."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        return f"shapes {one.shape} and {other.shape}"
    wrong = int(np.count_nonzero(one != other))
    return f"{wrong} of {one.size} values differ" if wrong else ""


def further_than(tolerance: float, unit: str) -> Callable[[npt.NDArray[Any], npt.NDArray[Any]], str]:
    """A check that two arrays differ by no more than a tolerance anywhere."""

    def check(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> str:
        if one.shape != other.shape:
            return f"shapes {one.shape} and {other.shape}"
        worst = float(np.abs(one - other).max(initial=0))
        # Written so that a NaN disagrees.
        return "" if worst <= tolerance else f"they differ by {worst:.3g} {unit}, more than {tolerance:g}"

    return check


def _seconds(work: Callable[[], Any]) -> float:
    gc.collect()  # the other side's garbage is not ours to collect
    start = time.perf_counter()
    answer = work()
    seconds = time.perf_counter() - start
    del answer
    return seconds
