"""Do this run's scans and answers still look like those of the bundle that is in use?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from lungml import drift, store
from lungml.drift_report import COMPARISONS, DriftReport
from lungml.findings import read_findings
from lungml.groups import StoreError, read_attributes
from lungml.home import Home
from lungml.profiles import (
    AnswersProfile,
    BundleProfile,
    ProfileError,
    ScanProfile,
    profile_answers,
    profile_scan,
    read_bundle_profile,
    read_scan_profile,
    write_profile,
)
from lungml.recipes.data import PreparedScan
from lungml.remote import Location
from tasks import registry, tracking
from tasks.caching import digest
from tasks.finding import FoundScan, NamedBundle
from tasks.pipeline import Pipeline


@task(name="watch_drift", task_run_name="drift of {bundle.name}", cache_policy=NO_CACHE)
def watch_drift(
    scans: Sequence[PreparedScan],
    found: Sequence[FoundScan],
    bundle: NamedBundle,
    standing: NamedBundle | None,
    pipeline: Pipeline,
) -> DriftReport:
    """Compare this run's scans and answers with those of the bundle in use when it was made; warns in the log.

    A bundle's profile is kept under the home's `reports/profiles/bundles/` when it is first judged and stays as it was.
    Scans are profiled one at a time, each once: `reports/profiles/<series_uid>.json`. Without a kept profile of the
    bundle in use its training scans are profiled, as far as they are there; what is missing is a note and no error.

    Args:
        scans: all of this run.
        found: what this run's bundle found on its validation and test scans.
        bundle: this run's.
        standing: the one in use; None where there is none or it is this run's own, which is then compared with what
            it was.
        pipeline: of this run; its seed shuffles.
    """
    log, home = get_run_logger(), pipeline.home
    stores = {scan.series_uid: scan.store for scan in scans}
    now = {uid: profile for uid in stores if (profile := _profile(home, uid, stores[uid]))}
    answers = tuple(profile_answers(files.series_uid, read_findings(files.findings)) for files in found)
    own, notes = _kept(home, bundle)
    before = own
    if standing:
        before, said = _kept(home, standing)
        notes += said
    if standing and not before:
        notes.append(f"no profile of {standing.name} is known")
        before = _recall(home, standing, stores)
    if own is None:
        write_profile(profile_path(home, bundle), _recall(home, bundle, stores, answers))
    comparisons = _compare(scans, now, answers, before, pipeline, notes)
    report = DriftReport(
        bundle=bundle.name,
        reference=before.bundle if before else "",
        comparisons=comparisons,
        notes=tuple(notes),
        profile=profile_path(home, bundle),
    )
    for line in report.warnings:
        log.warning(line)
    for note in report.notes:
        log.info("drift: %s", note)
    said = [f"{bundle.name} beside {report.reference or 'nothing'}; drift: {report.verdict}"]
    said += [f"not compared: {note}" for note in report.notes if report.comparisons]
    create_table_artifact(report.rows, key="luna-drift", description="\n\n".join(said))
    return report


def log_drift(run: tracking.Run, report: DriftReport) -> None:
    """Keep a report with an open run: metrics to chart, the tag `luna.drift`, and two files below `drift`."""
    run.log_metrics(report.metrics)
    run.log_tag("luna.drift", report.verdict)
    run.log_text(json.dumps(report.as_dict(), indent=1), "drift/drift.json")
    run.log_text(report.profile.read_text(encoding="utf-8"), "drift/profile.json")


def profile_path(home: Home, bundle: NamedBundle) -> Path:
    """Where a bundle's profile is kept."""
    return home.reports / "profiles" / "bundles" / f"{bundle.slug}.json"


def _compare(
    scans: Sequence[PreparedScan],
    now: Mapping[str, ScanProfile],
    answers: Sequence[AnswersProfile],
    before: BundleProfile | None,
    pipeline: Pipeline,
    notes: list[str],
) -> dict[str, drift.Comparison]:
    """Every comparison that can be made; what cannot joins the notes."""
    if before is None:
        notes.append("no other bundle is in use yet: there is nothing to compare with")
        return {}
    if not before.train:
        notes.append(f"what {before.bundle} learned from is not known or gone: no scans are compared with it")
    if not before.answers:
        notes.append(f"no answers of {before.bundle} are kept from when it was made: none are compared with it")
    rng, level = np.random.default_rng(pipeline.seed), drift.LEVEL / len(COMPARISONS)
    known = {profile.series_uid for profile in (*before.train, *before.held_out)}
    training = [now[scan.series_uid] for scan in scans if scan.split == "train" and scan.series_uid in now]
    fresh = [profile for uid, profile in now.items() if uid not in known]
    reference, answered = drift.input_numbers(before.train), drift.answer_numbers(before.answers)
    wanted = {
        "new_scans": (reference, drift.input_numbers(fresh)),
        "training_scans": (reference, drift.input_numbers(training)),
        "answers": (answered, drift.answer_numbers(answers)),
    }
    made = {}
    for name, (first, second) in wanted.items():
        comparison = drift.compare(first, second, rng, level=level)
        if comparison.shifts:
            made[name] = comparison
        elif comparison.before and comparison.now:
            counts = f"{comparison.now} now, {comparison.before} before"
            notes.append(f"{COMPARISONS[name][0]}: {counts}: too few scans to tell anything from chance")
        elif comparison.before:
            notes.append(f"{COMPARISONS[name][0]}: there are none")
    return made


def _kept(home: Home, bundle: NamedBundle) -> tuple[BundleProfile | None, list[str]]:
    """The kept profile of a bundle; None, and perhaps a note, where there is none that can be read."""
    try:
        return read_bundle_profile(profile_path(home, bundle)), []
    except ProfileError:
        return None, [f"the kept profile of {bundle.name} is damaged or of another version of luna"]


def _recall(
    home: Home, bundle: NamedBundle, stores: Mapping[str, Location], answers: tuple[AnswersProfile, ...] = ()
) -> BundleProfile:
    """A bundle's profile from what its models' runs say they were shown, as far as those scans are still there."""
    sides: dict[str, str] = {}
    for member in registry.BUNDLE_MEMBERS:
        for uri in registry.member_uris(bundle.fields, member):
            for uid, side in tracking.model_scans(home, uri).items():
                sides[uid] = "train" if "train" in (side, sides.get(uid)) else side
    train: list[ScanProfile] = []
    held_out: list[ScanProfile] = []
    for uid, side in sorted(sides.items()):
        profile = _profile(home, uid, stores.get(uid, home.scans / f"{uid}.zarr"))
        if profile:
            (train if side == "train" else held_out).append(profile)
    return BundleProfile(bundle=bundle.name, train=tuple(train), held_out=tuple(held_out), answers=answers)


def _profile(home: Home, series_uid: str, location: Location) -> ScanProfile | None:
    """One scan's profile, kept or made now; None where its store is gone or not whole."""
    path = home.reports / "profiles" / f"{series_uid}.json"
    try:
        voxels = digest(read_attributes(location)["key"])
        kept = read_scan_profile(path, voxels)
        if kept is None:
            hu, grid = store.read_volume(location), store.read_grid(location)
            kept = profile_scan(series_uid, hu, grid, voxels=voxels)
            write_profile(path, kept)
    except StoreError:
        return None
    return kept
