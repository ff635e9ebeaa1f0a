"""Is enough known of a bundle, and is it here, to make that bundle again?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lungml.errors import LunaError
from lungml.fit import identity_of
from lungml.frozen_split import SPLITS
from lungml.home import Home
from lungml.recipes import Recipe, RecipeError
from lungml.recipes.data import PreparedScan, of_split
from lungml.recipes.variants import recipe_of
from tasks import machine, runs, tracking
from tasks.caching import digest
from tasks.lineage import BundleLineage, bundle_lineage, part_of, settings_of
from tasks.recorded import DATA, code_digests
from tasks.truth import ScanTruth

NEEDED = ("recipe", "seed", "device", "devices", "precision", "luna_dir")  # parameters without which nothing goes
SAME_VERSIONS = ("python", "torch", "numpy", "cpu", "gpu", "threads")  # of what a run ran on, may move the last digits


class ReproductionError(LunaError):
    """A bundle cannot be made again; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """The data of one split as they were.

    Attributes:
        digest: of all of them.
        scans: series_uid -> digest of its data.
        set_aside: series that could not be read.
    """

    digest: str
    scans: Mapping[str, str]
    set_aside: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What is known of how a bundle was made: enough to make it again.

    Attributes:
        lineage: of the bundle.
        run_id: of the run that made it.
        parameters: of that run.
        data: split -> its data.
        notes: what cannot be made again though the bundle can: models that were given to the run.
    """

    lineage: BundleLineage
    run_id: str
    parameters: Mapping[str, Any]
    data: Mapping[str, SplitRecord]
    notes: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """`models:/luna/N`."""
        return self.lineage.uri

    @property
    def recipe(self) -> Recipe:
        """As that run had it, by this version's code."""
        given = self.parameters
        return recipe_of(given["recipe"], budget=given.get("budget", 1.0), overrides=given.get("overrides"))


def read_recorded(home: Home, uri: str) -> Recorded:
    """What is known of how a bundle was made.

    Raises:
        TrackingError: there is no such bundle.
        ReproductionError: not enough is known to make it again.
    """
    lineage = bundle_lineage(home, uri)
    imported = [f"{name} {model.uri}" for name, model in lineage.members if model.run and "file" in model.run.params]
    if imported:
        raise ReproductionError(
            f"{lineage.uri}: {', '.join(imported)} was imported: weights from elsewhere cannot be trained again"
        )
    if lineage.run is None or not lineage.parameters:
        why = lineage.missing[0] if lineage.missing else "its run says nothing of its parameters"
        raise ReproductionError(f"{lineage.uri}: {why}; train it anew with luna run, and that one can be made again")
    lacking = [name for name in NEEDED if name not in lineage.parameters]
    said = runs.read_json(home, lineage.run.run_id, DATA)
    if lacking or not isinstance(said, Mapping):
        what = f"of {', '.join(lacking)}" if lacking else "of its data"
        raise ReproductionError(f"{lineage.uri}: its run {lineage.run.run_id} says nothing {what}; train it anew")
    reused = lineage.parameters.get("reuse_models") or {}
    given = [uri for uris in reused.values() for uri in ([uris] if isinstance(uris, str) else uris)]
    return Recorded(
        lineage=lineage,
        run_id=lineage.run.run_id,
        parameters=lineage.parameters,
        data={
            split: SplitRecord(
                digest=one["digest"], scans=dict(one["scans"]), set_aside=tuple(one.get("set_aside", ()))
            )
            for split, one in said.items()
        },
        notes=tuple(f"{uri} was given to the run, not trained by it: taken as it is, not made again" for uri in given),
    )


def check_code(recorded: Recorded, any_code: bool) -> tuple[str, ...]:
    """See that this is the code, and on what machine, that made a bundle; sentences on what is not as it was.

    Args:
        recorded: of the bundle.
        any_code: go on with other code, and say so.

    Raises:
        ReproductionError: it is other code, or files differ from the commit now or did so then.
    """
    then, now = recorded.lineage.commit, tracking.git_commit()
    known, here = recorded.lineage.code, code_digests()
    changed = [what for what in here if known.get(what) != here[what]]
    notes = list(recorded.notes)
    if not then or then != now or then.endswith("-dirty"):
        what = f"what decides {', '.join(changed)} differs" if changed else "what decides the results is the same"
        line = f"made by code {then or 'of no known commit'}, this is {now or 'of no known commit'}: {what}"
        if not any_code:
            raise ReproductionError(f"{recorded.uri}: {line}; check that commit out, or go on with --any-code")
        notes.append(f"{line}.")
    before, environment = recorded.lineage.run.environment if recorded.lineage.run else {}, machine.environment()
    notes += [
        f"{name}: {before.get(name, 'none')} then, {environment.get(name, 'none')} now."
        for name in SAME_VERSIONS
        if before.get(name) != environment.get(name)
    ]
    return tuple(notes)


def check_settings(recorded: Recorded) -> None:
    """See that the recipe still says what the bundle's models were trained by; those given to the run aside.

    Raises:
        ReproductionError: naming the first setting that is another one, or the recipe is not one of this version.
    """
    try:
        recipe = recorded.recipe
    except RecipeError as error:
        raise ReproductionError(f"{recorded.uri}: its recipe cannot be had: {error}") from error
    reused = json.dumps(recorded.parameters.get("reuse_models") or {})
    for member, model in recorded.lineage.members:
        if model.run is None or model.uri in reused:
            continue
        wanted, given = identity_of(getattr(recipe, part_of(model.run))), settings_of(model.run)
        other = [name for name in dict.fromkeys((*wanted, *given)) if wanted.get(name) != given.get(name)]
        if other:
            raise ReproductionError(
                f"{recorded.uri}: its {member} model was trained with {other[0]} {given.get(other[0], 'none')}, the "
                f"recipe {recipe.name} here says {wanted.get(other[0], 'none')}; use the code that made it"
            )


def same_data(
    recorded: Recorded, scans: Sequence[PreparedScan], set_aside: Sequence[ScanTruth]
) -> tuple[list[PreparedScan], list[ScanTruth]]:
    """Of what was prepared, the scans that made a bundle, and those that could not be read then either.

    Series that came since are left out.

    Raises:
        ReproductionError: naming the first split whose data are not those, and how many scans are gone or other ones.
    """
    known = {uid: split for split, one in recorded.data.items() for uid in (*one.scans, *one.set_aside)}
    chosen = [scan for scan in scans if scan.series_uid in known]
    aside = [truth for truth in set_aside if truth.series_uid in known]
    for split in SPLITS:
        record = recorded.data.get(split, SplitRecord(digest="", scans={}, set_aside=()))
        here = {scan.series_uid: scan.digest for scan in of_split(chosen, split)}
        gone = [uid for uid in record.scans if uid not in here]
        more = [uid for uid in here if uid not in record.scans]
        other = [uid for uid, mark in record.scans.items() if uid in here and here[uid] != mark]
        told = ", ".join(
            f"{len(uids)} {what} (such as {uids[0]})"
            for what, uids in (("gone or of another split", gone), ("could not be read then", more), ("changed", other))
            if uids
        )
        if told:
            where = "give the scans that made it with --luna-dir"
            where += ", or use the code that prepared them" if other else ""
            raise ReproductionError(f"{recorded.uri}: other data in {split}: {told}; {where}")
        if digest([scan.digest for scan in of_split(chosen, split)]) != record.digest:
            raise ReproductionError(
                f"{recorded.uri}: the scans of {split} come in another order; sort them as they were"
            )
        unread = sorted(set(record.set_aside) ^ {truth.series_uid for truth in aside if truth.split == split})
        if unread:
            raise ReproductionError(
                f"{recorded.uri}: other data in {split}: {unread[0]} could be read then or now only"
            )
    return chosen, aside
