"""Which numbers does the report that this software implements give for itself?

All are of 89 LUNA16 scans each: of the series sorted by uid, validation is every tenth from the first, test every tenth
from the second. On any other scans they are no measure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lungml.accounting import Funnel
from lungml.score import Table
from lungml.scored import Scored


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the report prints of one model on one split; NaN where nothing is to be counted."""

    f1: float
    precision: float
    recall: float

    @classmethod
    def at(cls, scored: Scored, threshold: float) -> Rates:
        """Of what was scored, at a threshold that is reached."""
        tp, fp, fn, _ = scored.counts(threshold)
        return cls(
            f1=2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
            precision=tp / (tp + fp) if tp + fp else math.nan,
            recall=tp / (tp + fn) if tp + fn else math.nan,
        )


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What the report says of one split.

    Attributes:
        name: of the split.
        table: tables 2.5 and 2.6, end to end.
        segmentation: table 2.1: pixels of full slices that hold a nodule.
        classifier: table 2.2: LUNA16's own candidates, not those of the segmentation.
        fine_tuned, scratch: tables 2.3 and 2.4: annotated nodules.
        fine_tuned_auc, scratch_auc: of the same.
        diameter_auc: section 2.3.2 for validation; the report gives none for test: computed from LUNA16's table.
    """

    name: str
    table: Table
    segmentation: Rates
    classifier: Rates
    fine_tuned: Rates
    fine_tuned_auc: float
    scratch: Rates
    scratch_auc: float
    diameter_auc: float


def _table(*counts: tuple[int, int, int, int]) -> Table:
    return Table(counts=counts, scans=89, scans_without_findings=0, ignored_on_excluded=0)


VALIDATION = Reported(
    name="validation",
    table=_table((0, 162825, 641, 113), (12, 6, 71, 13), (1, 6, 8, 37)),
    segmentation=Rates(f1=0.0466, precision=0.0239, recall=0.8502),
    classifier=Rates(f1=0.4749, precision=0.3198, recall=0.9221),
    fine_tuned=Rates(f1=0.7333, precision=0.6471, recall=0.8462),
    fine_tuned_auc=0.8989,
    # As printed; the precision does not fit the other two: 40 of 52 found and F1 0.7619 make it 40 / 53 = 0.7547.
    scratch=Rates(f1=0.7619, precision=0.7581, recall=0.7692),
    scratch_auc=0.9110,
    diameter_auc=0.901,
)
TEST = Reported(
    name="test",
    table=_table((0, 144659, 552, 80), (12, 3, 39, 6), (2, 7, 7, 16)),
    segmentation=Rates(f1=0.1088, precision=0.0585, recall=0.7745),
    classifier=Rates(f1=0.3340, precision=0.2067, recall=0.8696),
    fine_tuned=Rates(f1=0.7778, precision=0.7000, recall=0.8750),
    fine_tuned_auc=0.9258,
    scratch=Rates(f1=0.7812, precision=0.7812, recall=0.7812),
    scratch_auc=0.8964,
    diameter_auc=0.950,
)
# Section 2.3, orders of magnitude; of the malignant it says "one or two".
FUNNEL = Funnel(voxels=2.0**25, flagged=2.0**20, candidates=2.0**10, nodules=2.0**5, malignant=2.0)
