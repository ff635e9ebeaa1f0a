"""Has this work been done already, from exactly these inputs, by exactly this code?

A task looks at what lies on disk: every output carries the key it was made under, and a task run that finds its
output whole and under the current key ends in the state Cached without repeating it. The truth about finished work
so lies beside the work: a deleted or damaged output is made again, and no record of it can go stale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from prefect.states import Completed, State

import lungml
from lungml.groups import key_digest as digest

__all__ = ["code_digest", "digest", "file_digest", "kept"]

# What decides a trained model; a change in any of these files trains anew.
GROUPING_MODULES = ("candidates.py", "components.py", "lattice.py", "marked.py", "pieces.py", "splitting.py")
TRAINING_MODULES = (
    *GROUPING_MODULES,
    "augment.py", "averaging.py", "candidate_recall.py", "crop_cache.py", "crops.py", "devices.py", "figures.py",
    "fit.py", "fit_settings.py", "geometry.py", "job.py", "loading.py", "losses.py", "masks.py", "metrics.py", "models",
    "ratings.py", "recipes", "records.py", "replay.py", "sampling.py", "score.py", "scored.py", "tally.py",
    "thresholds.py",
)  # fmt: skip
# What decides whether a scan reads well.
READING_MODULES = (
    "ct.py", "dicom.py", "dicom_slice.py", "geometry.py", "metaimage.py", "nifti.py", "plausibility.py",
    "series_files.py",
)  # fmt: skip
MASK_MODULES = ("geometry.py", "masks.py")
CONTOUR_MODULES = (
    "contours.py", "lidc_grid.py", "lidc_luna.py", "lidc_nodules.py", "lidc_truth.py", "lidc_xml.py",
)  # fmt: skip
CROP_MODULES = ("crop_cache.py", "crops.py", "geometry.py", "lungs.py", "sampling.py")
# What decides a scan's findings, given the models.
INFERENCE_MODULES = (
    *GROUPING_MODULES,
    "answers.py", "calibration.py", "classify.py", "crops.py", "devices.py", "field.py", "findings.py", "geometry.py",
    "inference.py", "lungs.py", "models", "segment.py",
)  # fmt: skip
# What decides how its answers are set against the annotations.
JUDGING_MODULES = ("annotated.py", "masks.py", "metrics.py", "score.py", "segmentation_score.py")


def file_digest(path: Path) -> str:
    """A short fingerprint of a small file's bytes; empty when there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24] if path.is_file() else ""


@cache
def code_digest(modules: tuple[str, ...]) -> str:
    """A fingerprint of the named source files and folders of lungml."""
    root = Path(lungml.__file__).parent
    return digest([file.read_text() for file in _sources(root, modules)])


def kept(value: Any) -> State:
    """The state of a task run that found its work done: shown as Cached.

    A flow must submit or map such a task and ask for the result: called directly, Prefect hands on the state itself.
    """
    return Completed(data=value, name="Cached", message="kept: nothing it depends on has changed")


def _sources(root: Path, modules: Iterable[str]) -> list[Path]:
    found = []
    for name in modules:
        path = root / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found
