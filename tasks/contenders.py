"""Which bundles shall be judged?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lungml.candidates import Grouping
from lungml.home import Home
from lungml.recipes import best
from tasks import registry, tracking
from tasks.caching import digest
from tasks.finding import NamedBundle
from tasks.members import load_member
from tasks.promotion import CHAMPION, DEMO, alias_of, resolve
from tasks.provenance import learned_origin
from tasks.tracking import TrackingError

LOOSE = "loose"  # the recipe of models that no recipe brought together
DEFAULT_ALIASES = (CHAMPION, DEMO)
THRESHOLD = 0.5  # the report's, of both classifiers


@dataclass(frozen=True, kw_only=True)
class LooseModels:
    """Three models that no bundle holds, or several of a kind, whose probabilities are averaged.

    Attributes:
        segmentation, classification, malignancy: URIs such as models:/m-... or models:/luna-segmentation/3.
        grouping: the rule by which marked voxels become candidates; the best recipe's when it is not given.
    """

    segmentation: tuple[str, ...]
    classification: tuple[str, ...]
    malignancy: tuple[str, ...]
    grouping: Grouping | None = None


def contenders(home: Home, bundle_uris: Sequence[str], loose: LooseModels | None = None) -> tuple[NamedBundle, ...]:
    """The bundles behind some URIs and, after them, one of loose models, as they are now.

    Raises:
        TrackingError: one of them is not there, is not whole, or is none.
        GroupingError: no such grouping.
    """
    # An alias moves on; what is written down shall not.
    named = [NamedBundle.of(home, resolve(home, uri)) for uri in bundle_uris]
    return (*named, loose_bundle(home, loose)) if loose else tuple(named)


def default_bundle(home: Home) -> tuple[str, str]:
    """`models:/luna/N` of the bundle to judge where none was named, and its alias: champion, else demo.

    Raises:
        TrackingError: neither is there.
    """
    for alias in DEFAULT_ALIASES:
        uri = alias_of(home, alias)
        if uri:
            return uri, alias
    raise TrackingError(
        f"no bundle is @{' or @'.join(DEFAULT_ALIASES)} in {tracking.shown_uri(home)}; name one, such as "
        f"models:/{registry.BUNDLE_NAME}/1, or train or import one"
    )


def loose_bundle(home: Home, models: LooseModels) -> NamedBundle:
    """A bundle of models that no version of `luna` holds: nothing is registered, and its name tells its content.

    Thresholds are 0.5, and nothing is calibrated: of these models together no validation scans were asked.

    Raises:
        TrackingError: a model is not there, or is none of its kind.
        GroupingError: no such grouping.
    """
    recipe = best()
    given = {"segmentation": models.segmentation, "nodule": models.classification, "malignancy": models.malignancy}
    members = {
        member: [_logged_uri(home, uri, registry.BUNDLE_MEMBERS[member]) for uri in uris]
        for member, uris in given.items()
    }
    origins = {learned_origin(home, uri) for uris in members.values() for uri in uris}
    grouping = replace(recipe.grouping, rule=models.grouping) if models.grouping else recipe.grouping
    fields = {
        **{member: uris[0] if len(uris) == 1 else uris for member, uris in members.items()},
        "grouping": asdict(grouping),
        "nodule_threshold": THRESHOLD,
        "malignant_threshold": THRESHOLD,
        "inference": asdict(recipe.inference),
        "recipe": LOOSE,
        "origin": "phantom" if "phantom" in origins else "real",
    }
    registry.check_bundle(fields)
    return NamedBundle(name=f"{LOOSE}-{digest(fields)[:8]}", fields=fields)


def _logged_uri(home: Home, uri: str, stage: str) -> str:
    """The `models:/m-...` URI behind any URI of a model; a version's or an alias' may mean another one later."""
    load_member(home, uri, stage)
    described = Path(tracking.download_model(home, uri)) / "MLmodel"
    named = re.search(r"^model_id: (m-\w+)$", described.read_text(), re.MULTILINE) if described.exists() else None
    if named is None:
        raise TrackingError(f"{uri}: its MLmodel names no logged model; give models:/m-...")
    return f"models:/{named[1]}"
