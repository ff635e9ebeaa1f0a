"""What does a registered bundle say of a scan that somebody wants read?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lungml.ct import Scan
from lungml.findings import Bundle, ask, judge
from lungml.home import Home
from lungml.reading.record import Opinion
from tasks import registry
from tasks.bundles import build_bundle, with_grouping
from tasks.promotion import resolve


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A bundle that is ready to read: its models are loaded once for many scans.

    Attributes:
        uri: `models:/luna/N`.
        asked_as: what it was asked for as.
        bundle: models and settings on their device.
        recipe, origin: of its models.
        models: member -> URIs.
    """

    uri: str
    asked_as: str
    bundle: Bundle
    recipe: str
    origin: str
    models: dict[str, tuple[str, ...]]

    def read(self, scan: Scan, on_slice: Callable[[int, int], None] | None = None) -> Opinion:
        """What it says of a scan.

        Raises:
            FindingError: a network gives what is no probability.
        """
        answers = ask(scan.hu, scan.grid, self.bundle, on_slice=on_slice)
        return Opinion(
            bundle=self.uri,
            asked_as=self.asked_as,
            recipe=self.recipe,
            origin=self.origin,
            nodule_threshold=self.bundle.nodule_threshold,
            malignant_threshold=self.bundle.malignant_threshold,
            grouping=self.bundle.grouping,
            findings=judge(answers, scan.grid, self.bundle),
            marked=answers.marked,
            left_out=answers.candidates.left_out,
            models=self.models,
        )


def open_reader(home: Home, uri: str, *, device: str = "auto", grouping: str | None = None) -> Reader:
    """Load a bundle for reading.

    Args:
        home: where models live.
        uri: `models:/luna/N` or an alias, which is resolved once.
        device: auto, cpu or cuda.
        grouping: a rule that replaces the bundle's own.

    Raises:
        TrackingError: there is no such bundle, or it is not whole.
        GroupingError: no rule is called so.
    """
    resolved = resolve(home, uri)
    fields = registry.read_bundle(home, resolved)
    bundle = build_bundle(home, fields, device)
    if grouping is not None:
        bundle = with_grouping(bundle, grouping)
    return Reader(
        uri=resolved,
        asked_as=uri,
        bundle=bundle,
        recipe=fields["recipe"],
        origin=fields["origin"],
        models={member: registry.member_uris(fields, member) for member in registry.BUNDLE_MEMBERS},
    )
