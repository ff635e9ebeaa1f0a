"""By which means is a scan segmented and judged?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """By which means; what is found stays the same within a stated tolerance."""

    precision: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False
    lungs_only: bool = False
    margin_mm: float = 20.0
