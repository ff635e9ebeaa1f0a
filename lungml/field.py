"""Which part of this scan is read, and which candidates lie in it?"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lungml.candidates import Candidates
from lungml.geometry import Grid
from lungml.inference import InferenceSettings
from lungml.lungs import LungField, NoLungsError, lung_field

log = logging.getLogger(__name__)


def field_to_read(hu: npt.NDArray[np.int16], grid: Grid, inference: InferenceSettings) -> LungField | None:
    """The lungs and the margin around them where only these are wanted and can be told; None: the full field.

    That they cannot be told is said in one line of the log.

    Args:
        hu: (index, row, col) int16.
        grid: the scan's sampling grid.
        inference: `lungs_only` and `margin_mm` are heeded here.
    """
    if not inference.lungs_only:
        return None
    try:
        return lung_field(hu, grid, inference.margin_mm)
    except NoLungsError as why:
        log.warning("the full field is read, not the lungs alone: %s", why)
        return None


def candidates_in(candidates: Candidates, field: LungField | None) -> Candidates:
    """Those whose centre's voxel lies in the field, in their order; all of them without one.

    The boxes that are segmented around a field hold more than the field, so that what crosses its border is whole.
    """
    if field is None:
        return candidates
    voxels = np.rint(candidates.centers_irc).astype(np.int64)
    inside = field.holds((voxels[:, 0], voxels[:, 1], voxels[:, 2]))
    return replace(
        candidates,
        centers_irc=candidates.centers_irc[inside],
        diameters_mm=candidates.diameters_mm[inside],
        scores=candidates.scores[inside],
    )
