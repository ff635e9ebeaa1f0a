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
from lungml.splitting import split

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
    spacing = grid.spacing_irc
    parts = split(seen, spacing, settings.levels, settings.threshold, report)
    count = len(parts.peaks)
    irc = np.stack(np.unravel_index(seen.voxels, seen.shape), axis=1)
    round_ones = np.append(_are_round(parts.component, irc * spacing, spacing, count), False)  # -1 finds the last
    # A hollow or ragged nodule may fall into parts, and still the middle of all of it is the place to look at. From
    # any other part something may lead away, such as its vessel: it neither pulls its centre nor counts as its volume.
    whole = np.flatnonzero(round_ones[parts.component])
    lone = np.flatnonzero((parts.of_voxel >= 0) & ~round_ones[parts.of_voxel])
    depth = parts.depth_mm[parts.of_voxel[lone]][:, None]
    off_mm = np.abs(irc[lone] - irc[parts.peaks][parts.of_voxel[lone]]) * spacing
    near = np.append(np.ones(len(whole)), ((off_mm / (depth + spacing)) ** 2).sum(axis=1) <= 1)
    own = np.append(np.ones(len(whole)), ((off_mm / (WIDEST * depth + spacing)) ** 2).sum(axis=1) <= 1)
    part = np.append(parts.component[whole], parts.of_voxel[lone])
    which = np.append(whole, lone)
    weights = near * _weights(hu, seen.voxels[which])
    centers = _means(part, weights, [weights * axis for axis in irc[which].T], count)
    probs = seen.probs[which].astype(np.float64)
    higher = own * (probs > settings.threshold)
    own = np.where(np.bincount(part, higher, minlength=count)[part] > 0, higher, own)
    volumes = np.bincount(part, own, minlength=count)
    scores = np.clip(_means(part, own, [own * probs], count)[:, 0], 0, 1)
    order = np.argsort(-scores, kind="stable")
    kept = order[: settings.max_candidates]
    return Candidates(
        centers_irc=centers[kept],
        diameters_mm=_diameters_mm(volumes, grid.spacing_irc)[kept],
        scores=scores[kept],
        left_out=parts.left_out + len(order) - len(kept),
    )


def _are_round(component: Ints, mm: Floats, spacing: Floats, count: int) -> npt.NDArray[np.bool_]:
    """Whether each component is no larger than a nodule and hardly more spread out than a ball of its volume."""
    inside = np.flatnonzero(component >= 0)
    number, mm = component[inside], mm[inside]
    voxels = np.bincount(number, minlength=count)
    size = np.maximum(voxels, 1)  # a part that is not the deepest of its component has none here
    mean, square = (
        np.stack([np.bincount(number, axis, minlength=count) for axis in values.T], axis=1) / size[:, None]
        for values in (mm, mm**2)
    )
    spread = (square - mean**2 + spacing**2 / 12).sum(axis=1)  # a voxel is spread out itself
    radius = _diameters_mm(size, spacing) / 2
    return (voxels > 0) & (2 * radius <= LARGEST_MM) & (spread <= ROUND**2 * 3 / 5 * radius**2)


def _means(labels: Ints, weights: Floats, moments: Sequence[Floats], count: int) -> Floats:
    """(count, axes) of each label: the sums of its moments by that of its weights."""
    total = np.bincount(labels, weights, minlength=count).astype(np.float64)
    return np.stack([np.bincount(labels, moment, minlength=count) / total for moment in moments], axis=1)


def _weights(hu: npt.NDArray[np.int16], voxels: Ints) -> Floats:
    return np.clip(hu.reshape(-1)[voxels], HU_MIN, HU_MAX).astype(np.float64) + 1001


def _diameters_mm(volumes: npt.NDArray, spacing: Floats) -> Floats:
    """Of spheres of so many voxels."""
    return np.cbrt(6 / np.pi * volumes * spacing.prod())
