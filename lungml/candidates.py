"""Which places does a segmented scan offer the classifiers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from lungml.components import Ints, Runs, erode, find_runs, label, spread
from lungml.crops import HU_MAX, HU_MIN
from lungml.errors import LunaError
from lungml.geometry import Grid
from lungml.marked import Marked
from lungml.splitting import Parts, split

Grouping = Literal["report", "union", "best"]
Floats = npt.NDArray[np.float64]
STEPS_BACK = 2  # one erosion takes a ball's outermost voxels: those beside the core, and those beside these
LARGEST_MM = 40.0  # nodules are up to 30 mm, what is larger is called a mass
ROUND = 1.2  # a ball is 1, one with a hollow of half its width 1.1, two balls that touch 1.3, a vessel more
WIDEST = 2.0  # a nodule's voxels lie within so many radii of its largest ball: it is not longer than twice its width


class GroupingError(LunaError):
    """No grouping has these settings."""


@dataclass(frozen=True, kw_only=True)
class GroupingSettings:
    """How voxels become candidates.

    Attributes:
        rule: "report" erodes once and labels what is left: nodules of fewer than three slices are lost, and those
            that a vessel or the wall still holds; "union" adds the components that the erosion deleted; "best" offers
            every component that can hold a nodule of 3 mm, and of those that narrow every part, see `splitting`.
        threshold: a voxel belongs to a candidate above this probability.
        min_voxels: "union" leaves out deleted components smaller than this.
        max_candidates: "best" offers a scan's surest ones, no more than these.
    """

    rule: Grouping = "report"
    threshold: float = 0.5
    min_voxels: int = 4
    max_candidates: int = 2000

    def __post_init__(self) -> None:
        if self.rule not in get_args(Grouping):
            raise GroupingError(f"unknown grouping {self.rule!r}; choose one of {', '.join(get_args(Grouping))}")
        if not 0 <= self.threshold < 1:
            raise GroupingError(f"grouping threshold {self.threshold} is not in [0, 1)")
        if self.max_candidates < 1:
            raise GroupingError(f"{self.max_candidates} candidates at most leave nothing to look at; choose 1 or more")

    @property
    def levels(self) -> tuple[float, ...]:
        """The probabilities at which the rule looks, ascending: 0.3, 0.5, 0.7 and 0.85 around "best"'s 0.5."""
        below, above = self.threshold, 1 - self.threshold
        return (0.6 * below, below, 1 - 0.6 * above, 1 - 0.3 * above) if self.rule == "best" else (below,)

    @property
    def floor(self) -> float:
        """The lowest probability above which the rule looks at a voxel."""
        return self.levels[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Places to look at.

    Attributes:
        centers_irc: (n, 3) float64, fractional voxels.
        diameters_mm: (n,) float64, of a sphere of the volume that was marked there.
        scores: (n,) float64 in [0, 1], how sure the segmentation was: the mean probability of that volume.
        left_out: places beyond the limit of a scan.
    """

    centers_irc: Floats
    diameters_mm: Floats
    scores: Floats
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.centers_irc)


def group_candidates(marked: Marked, hu: npt.NDArray[np.int16], grid: Grid, settings: GroupingSettings) -> Candidates:
    """Turn the marked voxels of a scan into candidates; none marked, none found.

    A centre is the mean of a candidate's voxels weighted by clipped HU + 1001 (so that no weight is 0), as in the
    report's published results. Components of "report" and "union" are 6-connected, and what belongs to an eroded one
    is within two voxels of it. Every number is of voxels above the threshold; a candidate of "best" that has none
    is measured by what it has.

    Args:
        marked: voxels above `settings.floor` or a lower one.
        hu: (index, row, col) int16; clipped here, on the candidates' voxels only.
        grid: the scan's sampling grid.
        settings: the rule.

    Returns:
        the candidates, in the order of the components' first voxels; of "best", the surest first.

    Raises:
        ValueError: when too little was kept of the segmentation for these settings, or the shapes differ.
    """
    if not marked.shape == hu.shape == tuple(grid.shape_irc):
        raise ValueError(f"a segmentation of {marked.shape}, a scan of {hu.shape} and a grid of {grid.shape_irc}")
    seen = marked.at(settings.floor)
    if not len(seen.voxels):
        return Candidates(centers_irc=np.empty((0, 3)), diameters_mm=np.empty(0), scores=np.empty(0))
    if settings.rule == "best":
        return _offer_parts(seen, hu, grid, settings)
    runs = find_runs(seen.voxels, seen.shape)
    cores = erode(runs)
    labels, count = label(cores)
    if settings.rule == "union":
        cores, labels, count = _with_deleted(cores, labels, count, runs, settings.min_voxels)
    return _measure(cores, labels, count, runs, seen, hu, grid)


def _with_deleted(cores: Runs, labels: Ints, count: int, runs: Runs, min_voxels: int) -> tuple[Runs, Ints, int]:
    """The components of the cores, and behind them those of all runs that have no core and are large enough."""
    component, components = label(runs)
    added = np.bincount(component, runs.lengths, minlength=components) >= min_voxels
    added[component[cores.common(runs)[2]]] = False
    which = np.flatnonzero(added[component])
    numbers = count - 1 + np.cumsum(added)
    both = Runs(
        runs.shape,
        np.concatenate([cores.starts, runs.starts[which]]),
        np.concatenate([cores.ends, runs.ends[which]]),
    )
    order = np.argsort(both.starts)
    return both.kept(order), np.concatenate([labels, numbers[component[which]]])[order], count + int(added.sum())


def _measure(
    cores: Runs, labels: Ints, count: int, runs: Runs, seen: Marked, hu: npt.NDArray[np.int16], grid: Grid
) -> Candidates:
    """Candidates centred on labelled runs, of the size of what lies around them."""
    _, rows, cols = seen.shape
    voxels = cores.voxels()
    weights = _weights(hu, voxels)
    firsts = np.cumsum(cores.lengths) - cores.lengths
    weight = np.add.reduceat(weights, firsts) if count else np.empty(0)
    along = np.add.reduceat(weights * (voxels - np.repeat(cores.starts, cores.lengths)), firsts) if count else weight
    row, col = np.divmod(cores.starts, cols)
    moments = [weight * (row // rows), weight * (row % rows), weight * col + along]
    centers = _means(labels, weight, moments, count)
    for _ in range(STEPS_BACK):
        cores, labels = spread(cores, labels, runs)
    volumes = np.bincount(labels, cores.lengths, minlength=count)
    before = np.concatenate([[0.0], np.cumsum(seen.probs, dtype=np.float64)])
    places = np.searchsorted(seen.voxels, cores.starts)
    probs = np.bincount(labels, before[places + cores.lengths] - before[places], minlength=count)
    return Candidates(
        centers_irc=centers,
        diameters_mm=_diameters_mm(volumes, grid.spacing_irc),
        scores=np.clip(probs / volumes, 0, 1),
    )


def _offer_parts(seen: Marked, hu: npt.NDArray[np.int16], grid: Grid, settings: GroupingSettings) -> Candidates:
    """The parts of what was marked, the surest first."""
    high = seen.at(settings.threshold)
    report = label(erode(find_runs(high.voxels, high.shape)))[1]
    parts = split(seen, grid.spacing_irc, settings.levels, settings.threshold, report)
    count = len(parts.peaks)
    which, part, near = _belongings(seen, parts, grid.spacing_irc)
    weights = _weights(hu, seen.voxels[which[near]])
    centers = _means(part[near], weights, [weights * axis for axis in _irc(seen, which[near])], count)
    probs = seen.probs[which]
    higher = probs > settings.threshold
    measured = higher | (np.bincount(part[higher], minlength=count) == 0)[part]
    part, probs = part[measured], probs[measured].astype(np.float64)
    volumes = np.bincount(part, minlength=count)
    scores = np.clip(np.bincount(part, probs, minlength=count) / volumes, 0, 1)
    order = np.argsort(-scores, kind="stable")
    kept = order[: settings.max_candidates]
    return Candidates(
        centers_irc=centers[kept],
        diameters_mm=_diameters_mm(volumes, grid.spacing_irc)[kept],
        scores=scores[kept],
        left_out=parts.left_out + len(order) - len(kept),
    )


def _belongings(seen: Marked, parts: Parts, spacing: Floats) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """What is measured of each part.

    A hollow or ragged nodule may fall into parts, and still the middle of all of it is the place to look at. From
    any other part something may lead away, such as its vessel: it neither pulls its centre nor counts as its volume.

    Returns:
        (m,) int64, voxels, those of whole components first; (m,) int64, the part of each; and whether it lies so
        near to its part's peak that it counts for the centre.
    """
    round_ones = np.append(_are_round(seen, parts.component, spacing, len(parts.peaks)), False)  # -1 finds the last
    whole = np.flatnonzero(round_ones[parts.component])
    lone = np.flatnonzero((parts.of_voxel >= 0) & ~round_ones[parts.of_voxel])
    lone = lone[_may_lie_around_peaks(seen, parts, lone, spacing)]
    own, near = _around_peaks(seen, parts, lone, spacing)
    return (
        np.append(whole, lone[own]),
        np.append(parts.component[whole], parts.of_voxel[lone[own]]),
        np.append(np.ones(len(whole), np.bool_), near[own]),
    )


def _may_lie_around_peaks(seen: Marked, parts: Parts, lone: Ints, spacing: Floats) -> npt.NDArray[np.bool_]:
    """A quick look along the rows, which most voxels of a large part do not pass; none passes less than it should."""
    cols = seen.shape[2]
    number = parts.of_voxel[lone]
    reach = np.ceil(WIDEST * parts.depth_mm / spacing[2]).astype(np.int64) + 1
    peaks = seen.voxels[parts.peaks] % cols
    return np.abs(seen.voxels[lone] % cols - peaks[number]) <= reach[number]


def _around_peaks(
    seen: Marked, parts: Parts, lone: Ints, spacing: Floats
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether some voxels lie within `WIDEST` radii and within one of their parts' peaks, a voxel more in each axis."""
    number = parts.of_voxel[lone]
    wide, close = np.zeros((2, len(lone)))
    for place, peak, step_mm in zip(_irc(seen, lone), _irc(seen, parts.peaks), spacing):
        off_mm = np.abs(place - peak[number]) * step_mm
        wide += (off_mm / (WIDEST * parts.depth_mm + step_mm)[number]) ** 2
        close += (off_mm / (parts.depth_mm + step_mm)[number]) ** 2
    return wide <= 1, close <= 1


def _are_round(seen: Marked, component: Ints, spacing: Floats, count: int) -> npt.NDArray[np.bool_]:
    """Whether each component is no larger than a nodule and hardly more spread out than a ball of its volume."""
    voxels = np.bincount(component + 1, minlength=count + 1)[1:]
    size = np.maximum(voxels, 1)  # a part that is not the deepest of its component has none here
    radius = _diameters_mm(size, spacing) / 2
    small = (voxels > 0) & (2 * radius <= LARGEST_MM)
    inside = np.flatnonzero(np.append(small, False)[component])
    number = component[inside]
    spread = np.zeros(count)
    for axis, step_mm in zip(_irc(seen, inside), spacing):
        mm = axis * step_mm
        mean, square = (np.bincount(number, values, minlength=count) / size for values in (mm, mm**2))
        spread += square - mean**2 + step_mm**2 / 12  # a voxel is spread out itself
    return small & (spread <= ROUND**2 * 3 / 5 * radius**2)


def _irc(seen: Marked, which: Ints) -> tuple[Ints, ...]:
    """Index, row and column of some voxels."""
    return np.unravel_index(seen.voxels[which], seen.shape)


def _means(labels: Ints, weights: Floats, moments: Sequence[Floats], count: int) -> Floats:
    """(count, axes) of each label: the sums of its moments by that of its weights."""
    total = np.bincount(labels, weights, minlength=count).astype(np.float64)
    return np.stack([np.bincount(labels, moment, minlength=count) / total for moment in moments], axis=1)


def _weights(hu: npt.NDArray[np.int16], voxels: Ints) -> Floats:
    return np.clip(hu.reshape(-1)[voxels], HU_MIN, HU_MAX).astype(np.float64) + 1001


def _diameters_mm(volumes: npt.NDArray, spacing: Floats) -> Floats:
    """Of spheres of so many voxels."""
    return np.cbrt(6 / np.pi * volumes * spacing.prod())
