"""What must be kept with a run, so that its bundle can be made again and compared?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from lungml.frozen_split import SPLITS
from lungml.recipes.data import PreparedScan, of_split
from tasks import tracking
from tasks.caching import (
    CONTOUR_MODULES,
    CROP_MODULES,
    INFERENCE_MODULES,
    JUDGING_MODULES,
    MASK_MODULES,
    READING_MODULES,
    TRAINING_MODULES,
    code_digest,
    digest,
)
from tasks.pipeline import Pipeline
from tasks.truth import ScanTruth

PARAMETERS, DATA, CODE = "parameters.json", "data.json", "code.json"  # files of an end-to-end run
READ = "luna.read."  # and a split: the tag of a training's run that says what its stage read of that split's data
FOLDERS = ("luna_dir", "tables_dir", "lidc", "more")  # where data lie is known to the home, and to nobody else
# From answers and annotations to every score.
SCORING_MODULES = (
    *JUDGING_MODULES, "accounting.py", "compare.py", "evidence.py", "froc.py", "scorecard.py", "scored.py",
)  # fmt: skip
# What readers' corrections come to.
CORRECTION_MODULES = ("reading/corrected_scan.py", "reading/correction_rules.py")
DECIDING = {
    "reading": READING_MODULES,
    "corrections": CORRECTION_MODULES,
    "masks": MASK_MODULES,
    "contours": CONTOUR_MODULES,
    "crops": CROP_MODULES,
    "training": TRAINING_MODULES,
    "inference": INFERENCE_MODULES,
    "scoring": SCORING_MODULES,
}


def told_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """A flow's parameters as they may be kept with a run: JSON-able, and of a folder only whether one was given."""
    told = {name: value for name, value in given.items() if name not in FOLDERS}
    folders = {name: given[name] is not None for name in FOLDERS if name in given}
    plain: dict[str, Any] = json.loads(json.dumps({**told, **folders}, default=_plain))
    return plain


def digests_of(scans: Sequence[PreparedScan]) -> dict[str, str]:
    """Split -> digest of its data: of every scan's, in their order; all of it, whatever of it a stage reads."""
    return {split: digest([scan.digest for scan in of_split(scans, split)]) for split in SPLITS}


def sizes_of(scans: Sequence[PreparedScan]) -> dict[str, dict[str, int]]:
    """Split -> scans, nodules (those of unknown malignancy too) and malignant nodules in it."""
    sizes: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        chosen = of_split(scans, split)
        nodules = [nodule for scan in chosen for nodule in scan.nodules]
        malignant = sum(nodule.malignant for nodule in nodules)
        unjudged = sum(len(scan.unjudged) for scan in chosen)
        sizes[split] = {"scans": len(chosen), "nodules": len(nodules) + unjudged, "malignant": malignant}
    return sizes


def code_digests() -> dict[str, str]:
    """What a pipeline does -> fingerprint of the modules that decide it: equal ones give equal results."""
    return {what: code_digest(modules) for what, modules in DECIDING.items()}


def log_recorded(
    run: tracking.Run,
    pipeline: Pipeline,
    scans: Sequence[PreparedScan],
    set_aside: Sequence[ScanTruth],
    parameters: Mapping[str, Any],
) -> None:
    """Keep with an end-to-end run what it takes to repeat it.

    Files: `parameters.json`; `scans.json`, every series' split; `data.json`, split -> the digest of its data, that of
    every scan, and the series that could not be read; `code.json`, see `code_digests`. The data also are the run's
    inputs, as data sets.

    Args:
        run: of the experiment `luna-end-to-end`.
        pipeline: what it ran on; `device` is kept as what it came to.
        scans: as `prepare` left them: without mined crops.
        set_aside: those that could not be read.
        parameters: see `told_parameters`.
    """
    told = {**parameters, "device": str(pipeline.hardware.check())}
    run.log_text(json.dumps(told, indent=1, sort_keys=True), PARAMETERS)
    run.log_text(json.dumps(code_digests(), indent=1), CODE)
    digests = digests_of(scans)
    run.log_datasets("scans", digests, sizes=sizes_of(scans))
    run.log_text(json.dumps({scan.series_uid: scan.split for scan in scans}, indent=1), tracking.SCANS)
    data = {
        split: {
            "digest": digests[split],
            "scans": {scan.series_uid: scan.digest for scan in of_split(scans, split)},
            "set_aside": [truth.series_uid for truth in set_aside if truth.split == split],
        }
        for split in SPLITS
    }
    run.log_text(json.dumps(data, indent=1), DATA)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a parameter of a flow cannot be kept: {value!r}")
