"""How is a number said, so that nobody reads more into it than is there?

What is not defined is "none", never "nan"; a band that is not known is left out of a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

PERCENT = "\N{NO-BREAK SPACE}%"  # a sign alone on the next line is no number
BAND = f"95{PERCENT}\N{NO-BREAK SPACE}band"  # a column's head


def rate(value: float, digits: int = 3) -> str:
    """0.772; "none" for what is not finite."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "none"


def four(*values: float) -> list[str]:
    """With four digits each, as the report prints them."""
    return [rate(value, 4) for value in values]


def signed(value: float, digits: int = 3) -> str:
    """+0.010, -0.010, 0.000."""
    text = rate(value, digits)
    if not text.strip("-0.,"):  # a zero, perhaps a rounded one
        return text.removeprefix("-")
    return f"+{text}" if value > 0 and math.isfinite(value) else text


def edges(band: tuple[float, float], digits: int = 3) -> str:
    """0.701 to 0.834."""
    return "none" if math.isnan(band[0]) else f"{rate(band[0], digits)} to {rate(band[1], digits)}"


def signed_edges(band: tuple[float, float], digits: int = 3) -> str:
    """-0.010 to +0.030."""
    return "none" if math.isnan(band[0]) else f"{signed(band[0], digits)} to {signed(band[1], digits)}"


def banded(band: tuple[float, float], digits: int = 3) -> str:
    """band 0.701 to 0.834; empty without one."""
    return "" if math.isnan(band[0]) else f"band {edges(band, digits)}"


def percent_banded(band: tuple[float, float]) -> str:
    """band 56 to 91 %; empty without one."""
    return "" if math.isnan(band[0]) else f"band {_hundredths(band[0])} to {_hundredths(band[1])}{PERCENT}"


def part_of(part: int, whole: int) -> str:
    """129 of 154."""
    return f"{part:,} of {whole:,}"


def percent(part: int, whole: int) -> str:
    """84 %; never 0 or 100 % of what is neither; empty of nothing."""
    return f"{_hundredths(part / whole)}{PERCENT}" if whole else ""


def with_percent(part: int, whole: int) -> str:
    """129 of 154, 84 %."""
    return listed(part_of(part, whole), percent(part, whole))


def mean(total: int, count: int, digits: int = 1) -> str:
    """A mean over scans; "none" without one."""
    return rate(total / count, digits) if count else "none"


def amount(value: float) -> str:
    """A mean as a person says it: 33.6 million, 1,024, 2.5, 0.033."""
    if not math.isfinite(value):
        return "none"
    if value >= 999_500:
        return f"{value / 1e6:.1f} million"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.95 or not value else f"{value:.2g}"


def p_value(value: float) -> str:
    """0.030; "below 0.001" rather than 0."""
    return rate(value) if math.isnan(value) or value >= 0.0005 else "below 0.001"


def probability(value: float) -> str:
    """Three digits, but never 0 or 1 for what is neither."""
    if 0 < value < 0.0005:
        return "below 0.001"
    return "above 0.999" if 0.9995 <= value < 1 else rate(value)


class Banded(Protocol):
    """A score with a band, which is NaN where there is none."""

    @property
    def band(self) -> tuple[float, float]: ...
    @property
    def left_out(self) -> int: ...


def left_out(scores: Iterable[Banded], resamples: int) -> str:
    """A sentence on the resamples that bands of some scores are not made of; empty when they are made of all."""
    most = max((score.left_out for score in scores if not math.isnan(score.band[0])), default=0)
    if not most:
        return ""
    return f"Resamples on which a score is not defined are left out of its band, at most {most:,} of {resamples:,}."


def commit(code: str, unknown: str = "unknown") -> str:
    """The first 12 digits of a commit, and whether files differed from it."""
    digits, dash, differs = code.partition("-")
    return f"{digits[:12]}{dash}{differs}" or unknown


def listed(*texts: str) -> str:
    """Those that are not empty, with commas."""
    return ", ".join(text for text in texts if text)


def sentences(*texts: str) -> str:
    """Those that are not empty, one after the other."""
    return " ".join(text for text in texts if text)


def _hundredths(share: float) -> str:
    text = f"{100 * share:.0f}"
    if text == "0" and share > 0:
        return "under 1"
    return "over 99" if text == "100" and share < 1 else text


def duration(seconds: float) -> str:
    """A length of time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
