"""What changed since the bundle in use was made: in lines, in a table, and in numbers to chart?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lungml.drift import LEVEL, PSI_DRIFTED, PSI_MOVED, Comparison

COMPARISONS = {  # name -> what is looked at, what it is compared with, what to do when it drifted
    "new_scans": ("new scans", "its training scans", "look at the new scans before trusting the scores"),
    "training_scans": ("training scans", "its training scans", "look at what joined or left the training scans"),
    "answers": ("answers", "its own when it was new", "look at some findings before trusting the bundle"),
}


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """What changed since the bundle that is in use was made.

    Attributes:
        bundle: URI of this run's.
        reference: URI of the one it is compared with; empty where there is none.
        comparisons: by name, see `COMPARISONS`; those that could not be made are not there.
        notes: what could not be compared, and why: sentences that name no folder.
        profile: the kept profile of this run's bundle.
    """

    bundle: str
    reference: str
    comparisons: Mapping[str, Comparison]
    notes: tuple[str, ...]
    profile: Path

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for every quantity that drifted: what, its numbers, what to do."""
        said = []
        for name, comparison in self.comparisons.items():
            now, before, advice = COMPARISONS[name]
            told = f"{now} ({comparison.now}) against {before} ({comparison.before}) of {self.reference}"
            said += [f"drift: {told}: {shift.sentence}; {advice}" for shift in comparison.drifted]
        return tuple(said)

    @property
    def verdict(self) -> str:
        """In a few words, as a run's tag shows it."""
        if not self.comparisons:
            return "not known"
        told = [
            f"{COMPARISONS[name][0]}: {', '.join(shift.words for shift in comparison.drifted)}"
            for name, comparison in self.comparisons.items()
            if comparison.drifted
        ]
        return "; ".join(told) or "none"

    @property
    def metrics(self) -> dict[str, float]:
        """What MLflow charts."""
        numbers: dict[str, float] = {"drift/warnings": len(self.warnings)} if self.comparisons else {}
        for name, comparison in self.comparisons.items():
            numbers[f"drift/{name}/scans"] = comparison.now
            for shift in comparison.shifts:
                under = f"drift/{name}/{shift.quantity}"
                numbers |= {
                    f"{under}/psi": shift.psi,
                    f"{under}/distance": shift.distance,
                    f"{under}/p": shift.p,
                    f"{under}/median": shift.now,
                }
        return numbers

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table a person reads, what drifted first; of notes alone where nothing could be compared.

        Beside numbers a note would push them out of a page's sight.
        """
        order = ("drifted", "moved", "same")
        told = [(name, s) for name, one in self.comparisons.items() for s in one.shifts]
        told.sort(key=lambda pair: order.index(pair[1].verdict))
        rows: list[dict[str, Any]] = [
            {
                "verdict": shift.verdict,
                "what": COMPARISONS[name][0],
                "quantity": shift.words,
                "before": f"{shift.before:.4g}",
                "now": f"{shift.now:.4g}",
                "PSI": round(shift.psi, 3),
                "PSI by chance": round(shift.psi_by_chance, 3),
                "distance": round(shift.distance, 3),
                "p": round(shift.p, 4),
            }
            for name, shift in told
        ]
        return rows or [{"verdict": "not compared", "what": note} for note in self.notes]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "bundle": self.bundle,
            "reference": self.reference,
            "limits": {"psi_moved": PSI_MOVED, "psi_drifted": PSI_DRIFTED, "level": LEVEL},
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "comparisons": {name: asdict(one) for name, one in self.comparisons.items()},
        }
