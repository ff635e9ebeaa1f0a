"""What exactly is in a bundle, and do its files still agree with that?

`manifest.json` lists it for machines, `README.md`, the card, tells it to people. Both lie beside the bundle's model in
MLflow, with its end-to-end run, and under the home's `reports/bundles/luna-N/`; the card also is the description that
the registry shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from lungml.bundle_card import BundleCard, CardModel, shortened, write_bundle_card
from lungml.calibration import Calibration
from lungml.files import write_text_atomic
from lungml.froc import FPS_PER_SCAN
from lungml.home import Home
from lungml.score import finite_or_none
from lungml.scorecard import Scorecard
from tasks import promotion, registry, runs, tracking
from tasks.corrections import corrections_of, words_of
from tasks.evaluation import SplitScore
from tasks.finding import slug_of
from tasks.lineage import MADE_BY, PIPELINE, BundleLineage, bundle_lineage, settings_of
from tasks.packing import BUNDLE_FILE, MEMBER_FILES, member_file, sha256
from tasks.pipeline import LOGGED, Pipeline, may_pass
from tasks.tracking import TrackingError

MANIFEST, CARD = "manifest.json", "README.md"
FORMAT = 1  # of the manifest
MANIFEST_TAG = "luna.manifest"  # of a bundle's version: the manifest's own sha256
CORRECTIONS_TAG = "luna.corrections"  # the same: up to which version corrections were used; none where none were
NO_SETTINGS = (*registry.BUNDLE_MEMBERS, "recipe", "origin")  # of a bundle's fields
OF_THE_KEPT = (*LOGGED.values(), "best_epoch")  # how a training's metrics of the epoch that was kept begin


@dataclass(frozen=True, kw_only=True)
class Described:
    """Where a bundle's manifest and card lie on this machine."""

    manifest: Path
    card: Path


def described_at(home: Home, uri: str) -> Described:
    """Where the manifest and the card of `models:/luna/N` lie, if they were written."""
    folder = home.reports / "bundles" / slug_of(uri)
    return Described(manifest=folder / MANIFEST, card=folder / CARD)


@task(
    name="describe_bundle",
    task_run_name="describe {bundle_uri}",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
)
def describe_bundle(bundle_uri: str, run_id: str, scores: Sequence[SplitScore], pipeline: Pipeline) -> Described:
    """Write a bundle's manifest and card wherever somebody may look for them, and on it which run made it.

    A bundle that is judged again stays the work of the run that made it, and gets a card of the newest scores.

    Args:
        bundle_uri: `models:/luna/N`.
        run_id: of `tasks.evaluation.log_end_to_end`.
        scores: on the validation and the test scans.
        pipeline: of this run.

    Raises:
        TrackingError: there is no such bundle, or a file of it is gone.
    """
    home, uri = pipeline.home, promotion.resolve(pipeline.home, bundle_uri)
    tracking.send_spooled(home, tracking.client_of(home))  # what its run says may wait still
    made_by = runs.facts_of_version(home, uri).tags.get(MADE_BY)
    if made_by is None or runs.facts_of_run(home, made_by) is None:
        promotion.tag_version(home, uri, {MADE_BY: run_id, PIPELINE: pipeline.pipeline_id})
    lineage = bundle_lineage(home, uri)
    cards = {str(score.split): score.card for score in scores}
    text = json.dumps(build_manifest(home, lineage, run_id, cards), indent=1, allow_nan=False) + "\n"
    card = write_bundle_card(_card(lineage, cards))
    at = described_at(home, uri)
    write_text_atomic(at.manifest, text)
    write_text_atomic(at.card, card)
    runs.add_files(home, uri, run_id, at.manifest.parent)
    whole = f"The whole card: {CARD} of the run {run_id}."
    runs.describe_version(home, uri, shortened(card, runs.MAX_DESCRIPTION, whole))
    used = _corrections(lineage)
    told = {CORRECTIONS_TAG: str(used["version"])} if used else {}
    promotion.tag_version(home, uri, {MANIFEST_TAG: sha256(at.manifest), **told})
    get_run_logger().info("%s: manifest and card under %s", uri, at.manifest.parent)
    return at


def build_manifest(
    home: Home, lineage: BundleLineage, judged_by: str, cards: Mapping[str, Scorecard]
) -> dict[str, Any]:
    """Everything that is known of a bundle, JSON-able; None where nothing says.

    Args:
        home: where it lies.
        lineage: where it comes from.
        judged_by: the end-to-end run whose scores these are.
        cards: split -> every score.
    """
    run, fields = lineage.run, lineage.fields
    members = [_member(member, model.as_dict()) for member, model in lineage.members]
    for (_, model), member in zip(lineage.members, members):
        member["metrics"] = {} if model.run is None else _of_the_model(model.run.metrics)
        member["settings"] = {} if model.run is None else settings_of(model.run)
    return {
        "format": FORMAT,
        "not for": "clinical use",
        "bundle": lineage.uri,
        "origin": fields["origin"],
        "recipe": fields["recipe"],
        "written": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "run": run.run_id if run else None,
        "judged_by": judged_by,
        "pipeline": lineage.pipeline_id or None,
        "commit": lineage.commit or None,
        "code": dict(lineage.code) or None,
        "environment": run.environment if run else {},
        "parameters": dict(lineage.parameters) or None,
        "seeds": {"pipeline": lineage.parameters.get("seed"), **{one["uri"]: one["seed"] for one in members}},
        "data": run.told_data() if run else {},
        **({"corrections": used} if (used := _corrections(lineage)) else {}),
        "settings": {name: value for name, value in registry.as_given(fields).items() if name not in NO_SETTINGS},
        "members": members,
        "files": files_of(home, lineage.uri),
        "metrics": {split: _scores(card) for split, card in cards.items()},
        "missing": list(lineage.missing),
    }


def files_of(home: Home, uri: str) -> dict[str, str]:
    """sha256 of every file of a bundle as it lies there now, by its name in the bundle's folder.

    Raises:
        TrackingError: there is no such bundle, or a file is gone.
    """
    file = next(tracking.download_model(home, uri).rglob(BUNDLE_FILE), None)
    if file is None:
        raise TrackingError(f"{uri}: is not a bundle; give models:/luna/N")
    fields, digests = registry.read_bundle_file(file), {BUNDLE_FILE: sha256(file)}
    if not registry.holds_copies(fields):
        return digests
    for member in registry.BUNDLE_MEMBERS:
        for model in registry.member_uris(fields, member):
            for name in (member_file(model, one) for one in MEMBER_FILES):
                try:
                    digests[name] = sha256(file.parent / name)
                except OSError as error:
                    raise TrackingError(f"{uri}: its file {name} cannot be read; restore it, or run again") from error
    return digests


def verify(home: Home, uri: str) -> tuple[str, ...]:
    """In what a bundle no longer is what its manifest says, a sentence each; nothing where they agree.

    Looked at are the manifest itself, every file of the bundle, the models that those are copies of, and the scores'
    run.

    Raises:
        TrackingError: there is no such bundle, or it has no manifest.
    """
    uri = promotion.resolve(home, uri)
    folder = tracking.download_model(home, uri)
    version = runs.facts_of_version(home, uri)
    try:
        said = json.loads((folder / MANIFEST).read_text())
        listed, members = said["files"], said["members"]
    except FileNotFoundError as error:
        raise TrackingError(f"{uri}: has no manifest; an older version of luna made it: luna run makes one") from error
    except (ValueError, KeyError, TypeError):
        return (f"{MANIFEST} is damaged",)
    wrong = []
    if version.tags.get(MANIFEST_TAG) != sha256(folder / MANIFEST):
        wrong.append(f"{MANIFEST} is not the one that was written")
    if (said.get("format"), said.get("bundle")) != (FORMAT, uri):
        wrong.append(f"{MANIFEST} is of {said.get('bundle')}, format {said.get('format')}, not of {uri}, {FORMAT}")
    try:
        found = files_of(home, uri)
        fields = registry.read_bundle(home, uri)
    except TrackingError as error:
        return (*wrong, str(error))
    wrong += [
        f"{name} is not the file that is listed" for name in listed if found.get(name) not in (None, listed[name])
    ]
    wrong += [f"{name} is listed and not there" for name in listed if name not in found]
    wrong += [f"{name} is not listed" for name in found if name not in listed]
    uris = [model for member in registry.BUNDLE_MEMBERS for model in registry.member_uris(fields, member)]
    if [one["uri"] for one in members] != uris:
        wrong.append("the bundle holds other models than are listed")
    try:
        registry.check_whole(home, uri)
    except TrackingError as error:
        wrong.append(str(error))
    return tuple(dict.fromkeys(wrong))


def _member(member: str, model: Mapping[str, Any]) -> dict[str, Any]:
    told = ("uri", "run", "name", "stage", "commit", "recipe", "seed", "data", "missing")
    parents = {stage: _member(stage, parent) for stage, parent in model["parents"].items()}
    return {"member": member, **{name: model[name] for name in told}, "parents": parents}


def _of_the_model(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Of a training's metrics, those of the epoch that was kept."""
    return {name: finite_or_none(value) for name, value in sorted(metrics.items()) if name.startswith(OF_THE_KEPT)}


def _scores(card: Scorecard) -> dict[str, Any]:
    """The scores that count, each with its band."""
    result, told = card.froc, card.samples["cpm"].tells
    sensitivity = {
        f"{fps:g}": {
            "observed": finite_or_none(at),
            "band": [finite_or_none(result.band_low[i]), finite_or_none(result.band_high[i])] if told else [None, None],
        }
        for i, (fps, at) in enumerate(zip(FPS_PER_SCAN, result.sensitivity_at))
    }
    return {
        "scans": len(card.series_uids),
        "set_aside": len(card.set_aside),
        "nodules": card.table.nodules,
        "malignant": card.table.malignant,
        "cpm_official": {
            "observed": finite_or_none(result.cpm),
            "band": [finite_or_none(edge) if told else None for edge in result.cpm_band],
        },
        "sensitivity_at_fps": sensitivity,
        **{str(name): sampled.as_dict() for name, sampled in card.samples.items()},
        "malignancy_over_diameter": card.over_diameter.as_dict(),
    }


def _corrections(lineage: BundleLineage) -> dict[str, int]:
    """Of the run that made it, see `tasks.corrections.used_corrections`; empty where it used none."""
    return corrections_of(lineage.run.metrics) if lineage.run else {}


def _card(lineage: BundleLineage, cards: Mapping[str, Scorecard]) -> BundleCard:
    run, fields = lineage.run, lineage.fields
    return BundleCard(
        uri=lineage.uri,
        origin=fields["origin"],
        recipe=fields["recipe"],
        commit=lineage.commit,
        models=tuple(
            CardModel(
                member=member,
                uri=model.uri,
                run=model.run.run_id if model.run else "",
                recipe=model.recipe,
                seed=model.run.params.get("seed", "") if model.run else "",
                parents=tuple(parent.uri for parent in model.parents.values()),
            )
            for member, model in lineage.members
        ),
        digests={split: data.digest for split, data in run.data.items()} if run else {},
        sizes={split: data.sizes for split, data in run.data.items()} if run else {},
        scores=cards,
        calibration=Calibration.from_dict(fields.get("calibration")).methods,
        run=run.run_id if run else "",
        pipeline=lineage.pipeline_id,
        parameters={name: value for name, value in lineage.parameters.items() if value or name != "corrections"},
        environment=run.environment if run else {},
        missing=lineage.missing,
        corrections=words_of(_corrections(lineage)),
    )
