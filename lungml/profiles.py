"""What do a scan's voxels look like, and what did a bundle answer, in a few numbers that can be kept and compared?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lungml.errors import FileError
from lungml.files import write_text_atomic
from lungml.findings import Finding
from lungml.geometry import Grid
from lungml.records import RecordError, record_from_text, record_to_text

# Raised whenever a number below is computed in another way: older profiles are made again where their scan is there.
PROFILE_VERSION = 1
HU_MIN, HU_MAX = -1000, 1000  # air .. dense bone: what the networks see
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# Every second row and column: on two real scans of 512 x 512 x 133 no percentile is off by more than 8 HU, the one
# between lung and tissue, where few voxels lie; the others by 1 HU at most.
STEP = 2
SLICES = 100  # about so many are looked at, evenly over the scan: the time a long scan takes is bounded
SOFT_HU = (-150, 200)  # fat .. enhanced blood: what noise is measured in
LEAST_SOFT = 1000  # voxels: fewer tell no noise
MAD_TO_SD = 1.4826  # of a normal distribution: 1 / its upper quartile
PROB_BINS = 20  # of equal width, 0 to 1
INPUT_NAMES = (
    "pixel_spacing_mm", "slice_spacing_mm", "slices", "height_mm", "field_mm",
    *(f"hu_p{percentile:02d}" for percentile in PERCENTILES), "noise_hu",
)  # fmt: skip


class ProfileError(FileError):
    """A kept profile that cannot be used; its text is one line: file, what is wrong, what to do."""


@dataclass(frozen=True, kw_only=True)
class ScanProfile:
    """What one scan is like as an input.

    Attributes:
        series_uid: of the scan.
        voxels: fingerprint of what its voxels were read from.
        values: one for each of `INPUT_NAMES`; None where a scan does not tell it.
        version: of the code that made it.
    """

    series_uid: str
    voxels: str
    values: Mapping[str, float | None]
    version: int = PROFILE_VERSION

    def __post_init__(self) -> None:
        if self.version != PROFILE_VERSION:
            raise ValueError(f"it is of version {self.version}, not {PROFILE_VERSION}")
        if tuple(self.values) != INPUT_NAMES:
            raise ValueError(f"it holds {', '.join(self.values)[:200]}, not {', '.join(INPUT_NAMES)}")


@dataclass(frozen=True, kw_only=True)
class AnswersProfile:
    """What a bundle said of one scan.

    Attributes:
        series_uid: of the scan.
        candidates: how many.
        nodules: how many of them were taken for nodules.
        prob_nodule: counts of candidates by their nodule probability, in `PROB_BINS` equal bins from 0 to 1.
        prob_malignant: counts of those taken for nodules by their probability of malignancy, alike.
    """

    series_uid: str
    candidates: int
    nodules: int
    prob_nodule: tuple[int, ...]
    prob_malignant: tuple[int, ...]

    def __post_init__(self) -> None:
        if {len(self.prob_nodule), len(self.prob_malignant)} != {PROB_BINS}:
            raise ValueError(f"its histograms have not {PROB_BINS} bins")


@dataclass(frozen=True, kw_only=True)
class BundleProfile:
    """What a bundle learned from and what it answered when it was new.

    Attributes:
        bundle: its URI.
        train: the scans that its models learned from; empty where they do not say, or those scans are gone.
        held_out: the scans that it was chosen and judged on.
        answers: on the latter.
        version: of the code that made it.
    """

    bundle: str
    train: tuple[ScanProfile, ...]
    held_out: tuple[ScanProfile, ...]
    answers: tuple[AnswersProfile, ...]
    version: int = PROFILE_VERSION

    def __post_init__(self) -> None:
        if self.version != PROFILE_VERSION:
            raise ValueError(f"it is of version {self.version}, not {PROFILE_VERSION}")


def profile_scan(series_uid: str, hu: npt.NDArray[np.int16], grid: Grid, *, voxels: str) -> ScanProfile:
    """Measure a scan.

    Radiodensity is measured in the middle half of its rows and columns, clipped to -1000 .. 1000 HU as the networks
    see it: lungs, mediastinum and spine. How much air lies around a patient, and with what value a scanner fills what
    it does not see, so changes nothing. Every second row and column counts, see `STEP`, and some 100 slices.

    Args:
        series_uid: of the scan.
        hu: (index, row, col) int16, not clipped; left as it is.
        grid: the scan's sampling grid.
        voxels: fingerprint of what they were read from.
    """
    slice_mm, row_mm, col_mm = grid.spacing_irc.tolist()
    slices, rows, cols = hu.shape
    middle = hu[:: max(1, slices // SLICES), rows // 4 : rows - rows // 4, cols // 4 : cols - cols // 4]
    sample = np.clip(middle[:, ::STEP, ::STEP], HU_MIN, HU_MAX)
    counts = np.bincount((sample - np.int16(HU_MIN)).ravel(), minlength=HU_MAX - HU_MIN + 1)
    measured = {
        "pixel_spacing_mm": (row_mm + col_mm) / 2,
        "slice_spacing_mm": slice_mm,
        "slices": float(slices),
        "height_mm": slices * slice_mm,
        "field_mm": (rows * row_mm + cols * col_mm) / 2,
        **{f"hu_p{p:02d}": HU_MIN + _quantile(counts, p / 100) for p in PERCENTILES},
        "noise_hu": _noise_hu(middle),
    }
    values = {name: None if value is None else round(value, 4) for name, value in measured.items()}
    return ScanProfile(series_uid=series_uid, voxels=voxels, values=values)


def profile_answers(series_uid: str, findings: Sequence[Finding]) -> AnswersProfile:
    """Count what a bundle said of a scan."""
    taken = [finding for finding in findings if finding.stage != "filtered"]
    return AnswersProfile(
        series_uid=series_uid,
        candidates=len(findings),
        nodules=len(taken),
        prob_nodule=_histogram([finding.prob_nodule for finding in findings]),
        prob_malignant=_histogram([finding.prob_malignant for finding in taken]),
    )


def write_profile(path: Path, profile: ScanProfile | BundleProfile) -> None:
    """Write a profile as JSON, whole or not at all."""
    write_text_atomic(path, record_to_text(profile) + "\n")


def read_scan_profile(path: Path, voxels: str) -> ScanProfile | None:
    """A kept scan's profile; None where there is none of exactly these voxels and this code, or it is damaged."""
    try:
        profile = record_from_text(ScanProfile, path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, RecordError):
        return None
    return profile if profile.voxels == voxels else None


def read_bundle_profile(path: Path) -> BundleProfile | None:
    """A kept bundle's profile; None where there is none.

    Raises:
        ProfileError: it is damaged, or of another version.
    """
    try:
        return record_from_text(BundleProfile, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, RecordError) as error:
        raise ProfileError(path, f"it cannot be read ({error})", "delete it") from error


def _quantile(counts: npt.NDArray[np.int64], share: float) -> float:
    """Where a share of whole numbers lies below, each number spread evenly over half a step on both sides."""
    below = np.cumsum(counts)
    wanted = share * below[-1]
    at = int(np.searchsorted(below, wanted))
    inside = (wanted - (below[at] - counts[at])) / counts[at] if counts[at] else 0.0
    return float(np.clip(at - 0.5 + inside, 0, len(counts) - 1))


def _noise_hu(middle: npt.NDArray[np.int16]) -> float | None:
    """The standard deviation of a voxel's noise, from second differences along rows within soft tissue.

    x[c-1] - 2 x[c] + x[c+1] has sqrt(6) times the deviation of independent noise, and edges do not move its median. A
    smooth kernel, whose neighbours go together, looks like less noise, and so is seen too.
    """
    lines = middle[:, :: 2 * STEP].astype(np.int32)
    left, center, right = lines[:, :, :-2], lines[:, :, 1:-1], lines[:, :, 2:]
    low, high = SOFT_HU
    soft = (np.minimum(np.minimum(left, center), right) > low) & (np.maximum(np.maximum(left, center), right) < high)
    if soft.sum() < LEAST_SOFT:
        return None
    sizes = np.abs(left - 2 * center + right)[soft]
    return float(MAD_TO_SD * _quantile(np.bincount(sizes), 0.5) / 6**0.5)


def _histogram(probs: Sequence[float]) -> tuple[int, ...]:
    counts, _ = np.histogram(probs, bins=PROB_BINS, range=(0, 1))
    return tuple(counts.tolist())
