"""What is known of a bundle that stands before the gate?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lungml.compare import Sampled, Statistic

Origin = Literal["real", "phantom"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of a bundle.

    Attributes:
        member: what it is there for: segmentation, nodule or malignancy.
        uri: of the model.
        origin: of the scans that it learned from; None where nothing says.
        inputs: how it sees a scan: context slices, or shape and spacing of its crops; whatever it states.
    """

    member: str
    uri: str
    origin: Origin | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)


def find_flaws(origin: Origin, members: Sequence[Member]) -> tuple[str, ...]:
    """What is mixed in a bundle, one line each; nothing is refused here.

    A bundle is mixed when it says that it is of real scans and one of its models learned from synthetic ones, or the
    other way round, or when two of its models that look at the same thing see it in another way: two U-Nets with
    other context, two classifiers (nodule and malignancy are one in that) with crops of another shape or spacing. Such
    a bundle works, every model's own inputs are cut for it, but no one training made it.
    """
    flaws = [
        f"its {one.member} model {one.uri} learned from {kind(one.origin)}, the bundle is one of {kind(origin)}"
        for one in members
        if one.origin is not None and one.origin != origin
    ]
    first: dict[tuple[bool, str], tuple[Member, Any]] = {}
    for one in members:
        for name, value in one.inputs.items():
            # JSON gives lists where a configuration has tuples.
            seen = tuple(value) if isinstance(value, list) else value
            before, other = first.setdefault((one.member == "segmentation", name), (one, seen))
            if other != seen:
                flaws.append(
                    f"its models disagree about {name}: {before.member} {before.uri} has {other}, "
                    f"{one.member} {one.uri} has {seen}"
                )
    return tuple(flaws)


@dataclass(frozen=True, kw_only=True)
class Candidacy:
    """A bundle as the gate sees it.

    Attributes:
        uri: `models:/luna/N`.
        origin: of the scans that its models learned from.
        samples: its scores; empty where it was not scored.
        series_uids: the test scans, in the order that they were resampled in, those set aside included.
        scans: what these are: "phantom" when any is synthetic.
        malignant: malignant nodules on them.
        set_aside: how many of the scans could not be read.
        flaws: why it is partial or mixed, see `find_flaws`.
        leaks: why these scans are not new to it.
    """

    uri: str
    origin: Origin
    samples: Mapping[Statistic, Sampled]
    series_uids: tuple[str, ...]
    scans: Origin
    malignant: int
    set_aside: int = 0
    flaws: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()


def kind(origin: Origin | None) -> str:
    """Scans of an origin, in words."""
    return "synthetic scans" if origin == "phantom" else "real scans"
