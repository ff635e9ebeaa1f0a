"""Is there enough in the crop cache for a stage to learn from, and to be judged on?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lungml.crop_cache import BENIGN, MALIGNANT, NODULES, NON_NODULES
from lungml.errors import TrainingError, one_line
from lungml.frozen_split import SPLITS
from lungml.groups import map_array
from lungml.recipes.data import PreparedScan, Stage, of_split

# Per stage: what its crops' labels must hold of each class, by name.
CLASSES: dict[Stage, dict[str, tuple[int, ...]]] = {
    "segmentation": {"nodule": NODULES},
    "classification": {"nodule": NODULES, "non-nodule": NON_NODULES},
    "malignancy": {"malignant nodule": (MALIGNANT,), "benign nodule": (BENIGN,)},
}


def check_ready(
    stage: Stage,
    scans: Sequence[PreparedScan],
    *,
    batch_size: int,
    crop_shape: tuple[int, int, int] | None = None,
    mined: bool = False,
) -> tuple[str, ...]:
    """Refuse what would fail in the middle of training, or score nothing after it; before the first step.

    Args:
        stage: which of the three.
        scans: of all splits.
        batch_size: samples a step.
        crop_shape: (index, row, col) voxels that the network takes; None where it takes any (the U-Net).
        mined: whether mined crops are learned from too.

    Returns:
        what should be said aloud: a class that only the test split lacks, so that its scores will be NaN.

    Raises:
        TrainingError: training or validation lacks a class, there are fewer samples than a batch, or the crops are of
            another shape than the network takes.
        StoreError: crops are not there, or were cut under other settings.
    """
    notes = []
    for split in SPLITS:
        of = of_split(scans, split)
        samples = "slab_labels" if stage == "segmentation" and split == "train" else "labels"
        folders = [scan.crops for scan in of]
        if mined and split == "train":
            folders += [scan.mined for scan in of if scan.mined is not None]
        parts = [map_array(folder, samples) for folder in folders]
        labels = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        for kind, among in CLASSES[stage].items():
            if np.isin(labels, among).any():
                continue
            problem = f"the {len(of)} {split} scans hold no {kind} for {stage}"
            if split == "test":
                notes.append(f"{problem}: test scores that need one will be NaN")
                continue
            raise TrainingError(f"{problem}; add scans that have some, or look into quarantine.csv")
        if split == "train" and len(labels) < batch_size:
            raise TrainingError(
                f"the {len(of)} train scans hold {len(labels)} samples for {stage}, fewer than a batch of "
                f"{batch_size}; add scans or lower batch_size"
            )
        if crop_shape is not None:
            for folder in folders:
                found = map_array(folder, "crops").shape[1:]
                if found != tuple(crop_shape):
                    raise TrainingError(
                        one_line(
                            f"{folder}: its crops are of {found} voxels, the network takes {tuple(crop_shape)}; "
                            "set its crop_shape to that of the crops"
                        )
                    )
    return tuple(notes)
