"""Is each part of "best" measured as the rule says, one part after the other?"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lungml.candidates import LARGEST_MM, ROUND, WIDEST, GroupingSettings, group_candidates
from lungml.components import erode, find_runs, label
from lungml.geometry import Grid
from lungml.marked import Marked
from lungml.splitting import Parts, split

BEST = GroupingSettings(rule="best")
SPACING = np.array([2.5, 0.7, 0.8])


def is_round(mm: np.ndarray) -> bool:
    """Of a component's voxels, (n, 3) mm."""
    radius = np.cbrt(6 / np.pi * len(mm) * SPACING.prod()) / 2
    spread = (mm.var(axis=0) + SPACING**2 / 12).sum()
    return bool(2 * radius <= LARGEST_MM and spread <= ROUND**2 * 3 / 5 * radius**2)


def measure(marked: Marked, parts: Parts, number: int, hu: np.ndarray) -> tuple[list[float], int, float]:
    """Centre, voxels and score of one part."""
    irc = np.stack(np.unravel_index(marked.voxels, marked.shape), axis=1)
    within = parts.component == number
    if within.any() and is_round(irc[within] * SPACING):
        own = near = within
    else:
        off_mm = np.abs(irc - irc[parts.peaks[number]]) * SPACING
        depth = parts.depth_mm[number]
        near, own = (
            (parts.of_voxel == number) & (((off_mm / (times * depth + SPACING)) ** 2).sum(axis=1) <= 1)
            for times in (1, WIDEST)
        )
    weights = np.clip(hu.reshape(-1)[marked.voxels[near]], -1000, 1000) + 1001.0
    higher = own & (marked.probs > BEST.threshold)
    measured = higher if higher.any() else own
    center = (irc[near] * weights[:, None]).sum(axis=0) / weights.sum()
    return center.tolist(), int(measured.sum()), float(marked.probs[measured].mean(dtype=np.float64))


@settings(max_examples=15)
@given(st.integers(0, 200), st.sampled_from([(12, 40, 40), (1, 60, 60), (20, 12, 60)]), st.sampled_from([1.0, 2.0]))
def test_every_part(seed: int, shape: tuple[int, int, int], blur: float) -> None:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), (blur / 2, blur, blur))
    marked = Marked.of(1 / (1 + np.exp(-6 * smooth / smooth.std())), BEST.floor)
    hu = rng.integers(-1200, 1200, shape).astype(np.int16)
    reported = label(erode(find_runs(marked.above(0.5), shape)))[1]
    parts = split(marked, SPACING, BEST.levels, 0.5, reported)
    measured = [measure(marked, parts, number, hu) for number in range(len(parts.peaks))]
    measured.sort(key=lambda part: -part[2])
    found = group_candidates(marked, hu, Grid(shape_irc=shape, spacing_xyz=(0.8, 0.7, 2.5), origin_xyz=(0, 0, 0)), BEST)
    assert len(found) == len(measured) > 0
    order = np.argsort(-found.scores.round(9), kind="stable")  # sums in another order tie otherwise
    np.testing.assert_allclose(found.scores[order], [score for _, _, score in measured], rtol=1e-6)
    for center, voxels, score in measured:
        at = np.flatnonzero(np.isclose(found.scores, score, rtol=1e-6))
        off = np.abs(found.centers_irc[at] - center).max(axis=1)
        nearest = at[off.argmin()]
        assert off.min() < 1e-6
        np.testing.assert_allclose(found.diameters_mm[nearest], np.cbrt(6 / np.pi * voxels * SPACING.prod()))
