"""Are the scans, and a bundle's answers, still what they were, or is what differs no more than chance?

Every quantity is looked at in two ways: how large its change is (the population stability index, PSI), and whether
scans drawn from one pot would differ as much (a permutation test on the largest distance between the two cumulative
distributions). Of few scans a PSI is large by chance alone, of many any change is beyond chance: only what is both
large and beyond chance is a warning. What is shuffled are scans, since candidates of one scan are no independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lungml.differing import Counted
from lungml.profiles import INPUT_NAMES, PROB_BINS, AnswersProfile, ScanProfile

Verdict = Literal["same", "moved", "drifted"]
Numbers = Mapping[str, npt.NDArray[np.float64]]

# The rule of thumb of credit scoring, where the index comes from: below the first nothing changed that matters, above
# the second it did. A convention: no test and nothing about lungs.
PSI_MOVED, PSI_DRIFTED = 0.1, 0.25
LEVEL = 0.01  # how often a run whose scans and answers are what they were may warn all the same
SHUFFLES = 1999  # one in 2000 is then the smallest p
AT_ONCE = 250  # shuffles held in memory

WORDS: dict[str, tuple[str, str]] = {
    "pixel_spacing_mm": ("pixel spacing", "mm"),
    "slice_spacing_mm": ("slice spacing", "mm"),
    "slices": ("slices a scan", ""),
    "height_mm": ("height of the scanned region", "mm"),
    "field_mm": ("width of the field of view", "mm"),
    **{name: (f"HU percentile {int(name[4:])}", "HU") for name in INPUT_NAMES if name.startswith("hu_p")},
    "noise_hu": ("noise in soft tissue", "HU"),
    "candidates": ("candidates a scan", ""),
    "nodules": ("candidates taken for nodules a scan", ""),
    "prob_nodule": ("nodule probability of the candidates", ""),
    "prob_malignant": ("malignancy probability of those taken for nodules", ""),
}


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How one quantity differs between the reference and now.

    Attributes:
        quantity: its name, one of `WORDS`.
        before, now: medians, of a histogram to the middle of a bin; NaN where nothing was counted.
        psi: population stability index.
        psi_by_chance: 95 % of shuffles of the scans have a smaller one.
        distance: the largest between the cumulative distributions (Kolmogorov and Smirnov), 0 to 1.
        p: how often a shuffle has, in any quantity of the comparison, as unusual a distance.
        verdict: "drifted" past the limit and beyond chance, "moved" past the lower limit and beyond chance, "same".
    """

    quantity: str
    before: float
    now: float
    psi: float
    psi_by_chance: float
    distance: float
    p: float
    verdict: Verdict

    @property
    def words(self) -> str:
        """The quantity's name for a reader."""
        return WORDS[self.quantity][0]

    @property
    def sentence(self) -> str:
        """What changed, with its numbers."""
        now, before = (_with_unit(value, WORDS[self.quantity][1]) for value in (self.now, self.before))
        limit = PSI_DRIFTED if self.verdict == "drifted" else PSI_MOVED
        sign = ">" if self.psi > limit else "<="
        return f"{self.words} now {now} (median), before {before}: PSI {self.psi:.2f} {sign} {limit:g}, p {self.p:.2g}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What differs between some scans, or answers, and those of a reference.

    Attributes:
        before, now: how many scans each has.
        shifts: of every quantity; empty where there are too few scans to tell anything from chance.
    """

    before: int
    now: int
    shifts: tuple[Shift, ...]

    @property
    def drifted(self) -> tuple[Shift, ...]:
        """Those to warn of."""
        return tuple(shift for shift in self.shifts if shift.verdict == "drifted")


def input_numbers(profiles: Sequence[ScanProfile]) -> dict[str, npt.NDArray[np.float64]]:
    """What `compare` takes of scans: name -> (scans,) float64, NaN where a scan does not tell it."""
    return {name: np.array([p.values[name] for p in profiles], dtype=np.float64) for name in INPUT_NAMES}


def answer_numbers(profiles: Sequence[AnswersProfile]) -> dict[str, npt.NDArray[np.float64]]:
    """What `compare` takes of answers: name -> (scans,) float64 of values, or (scans, bins) float64 of counts."""
    return {
        "candidates": np.array([p.candidates for p in profiles], dtype=np.float64),
        "nodules": np.array([p.nodules for p in profiles], dtype=np.float64),
        "prob_nodule": np.array([p.prob_nodule for p in profiles], dtype=np.float64).reshape(-1, PROB_BINS),
        "prob_malignant": np.array([p.prob_malignant for p in profiles], dtype=np.float64).reshape(-1, PROB_BINS),
    }


def compare(before: Numbers, now: Numbers, rng: np.random.Generator, *, level: float = LEVEL) -> Comparison:
    """Compare every quantity of some scans with that of a reference.

    The p values hold for all quantities together: each shuffle's distances are brought to one scale, and its largest
    counts (Westfall and Young 1993). Quantities that go together, such as percentiles, so cost little power. Scans
    that stand on both sides make the test careful, not wrong.

    Memory is bounded by 250 shuffles of the scans, whatever their number.

    Args:
        before: of the reference: name -> (scans,) float64 of values, NaN where one is not known, or
            (scans, bins) float64 of counts; names are those of `WORDS`.
        now: the same names of the scans to be looked at.
        rng: source of the shuffles.
        level: how often chance alone may warn in this comparison.

    Raises:
        ValueError: the two do not hold the same quantities.
    """
    if before.keys() != now.keys():
        raise ValueError(f"{', '.join(before)} cannot be compared with {', '.join(now)}")
    first, second = (len(next(iter(numbers.values()), ())) for numbers in (before, now))
    if not enough(first, second, level):
        return Comparison(before=first, now=second, shifts=())
    tables = {name: Counted(before[name], now[name]) for name in before}
    known = {name: table for name, table in tables.items() if table.known}
    labels = np.zeros((1, first + second), dtype=np.float32)
    labels[0, :first] = 1
    measured = [np.stack([table.measure(labels) for table in known.values()])]
    for start in range(0, SHUFFLES, AT_ONCE):
        some = np.repeat(labels, min(AT_ONCE, SHUFFLES - start), axis=0)
        rng.permuted(some, axis=1, out=some)
        measured.append(np.stack([table.measure(some) for table in known.values()]))
    distance, psi = np.moveaxis(np.concatenate(measured, axis=1), 2, 0)  # (quantities, 1 + shuffles) each
    spread = distance.std(axis=1, keepdims=True)
    unusual = np.divide(distance - distance.mean(axis=1, keepdims=True), spread, where=spread > 0, out=0 * distance)
    p = (unusual.max(axis=0) >= unusual[:, :1] - 1e-9).mean(axis=1)
    shifts = []
    for place, name in enumerate(known):
        beyond = distance[place, 0] > 0 and p[place] <= level
        size = float(psi[place, 0])
        shifts.append(
            Shift(
                quantity=name,
                before=_median(before[name]),
                now=_median(now[name]),
                psi=size,
                psi_by_chance=float(np.quantile(psi[place, 1:], 0.95)),
                distance=float(distance[place, 0]),
                p=float(p[place]) if distance[place, 0] > 0 else 1.0,
                verdict="same" if not beyond or size <= PSI_MOVED else "drifted" if size > PSI_DRIFTED else "moved",
            )
        )
    return Comparison(before=first, now=second, shifts=tuple(shifts))


def enough(before: int, now: int, level: float = LEVEL) -> bool:
    """Whether so many scans on two sides could ever tell anything from chance, however much they differ.

    Two sides can be made of the scans in so many ways that the two farthest apart are rarer than the level.
    """
    return min(before, now) > 0 and math.comb(before + now, now) >= 2 / level


def _median(numbers: npt.NDArray[np.float64]) -> float:
    if numbers.ndim == 1:
        known = numbers[~np.isnan(numbers)]
        return float(np.median(known)) if len(known) else math.nan
    below = np.cumsum(numbers.sum(axis=0))
    return float((np.searchsorted(below, below[-1] / 2) + 0.5) / len(below)) if below[-1] else math.nan


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.3g}{' ' if unit else ''}{unit}" if abs(value) < 1000 else f"{value:.0f} {unit}".strip()
