"""From LUNA16's files to training-ready stores, one scan per task run."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml import crop_cache, groups, store
from lungml.ct import ScanError, read_scan, scan_fingerprint
from lungml.files import locked
from lungml.geometry import Grid, xyz_to_irc
from lungml.groups import is_current
from lungml.home import Home
from lungml.lidc_nodules import LidcNodule
from lungml.lidc_truth import consensus_boxes
from lungml.lidc_xml import LidcError
from lungml.lungs import lung_positions
from lungml.masks import MASK_NAMES, MASK_VERSION, MaskRule, nodule_boxes
from lungml.phantom import PHANTOM_VERSION, PhantomSettings, write_phantoms
from lungml.quarantine import known_reason, read_quarantine, release, set_aside
from lungml.recipes.data import PreparedScan, Reads
from lungml.remote import Location
from lungml.sampling import NegativePlan, kept_negatives
from lungml.verify import source_described
from tasks.caching import CONTOUR_MODULES, CROP_MODULES, MASK_MODULES, READING_MODULES, code_digest, digest, kept
from tasks.overdue import said_when_overdue
from tasks.rounds import Round
from tasks.truth import ScanTruth

NEGATIVE_DISTANCE_MM = 15.0  # drawn negatives keep this far from every annotated or excluded finding
# The demo's scans: small, and with more nodules than LUNA16's 1.3 a scan, so that minutes teach something.
DEMO_PHANTOMS = PhantomSettings(size_irc=(72, 256, 256), nodules=(2, 8))
DRAWN_NEGATIVES_PER_SCAN = 100  # where a data set has no candidates table


@dataclass(frozen=True, kw_only=True)
class StoredScan:
    """A converted scan.

    Attributes:
        truth: what is known of it.
        store: where its voxels lie.
        fingerprint: of the files it came from.
        warnings: of the reader, one line each; none of a scan that was converted before.
    """

    truth: ScanTruth
    store: Location
    fingerprint: str
    warnings: tuple[str, ...] = field(default=(), compare=False)


@task(name="make_phantoms", task_run_name="draw {scans} scans, seed {seed}", cache_policy=NO_CACHE)
def make_phantoms(home: Home, *, scans: int, seed: int) -> State | Path:
    """Draw the demo's synthetic scans; a finished folder of the same settings is kept."""
    settings = digest([PHANTOM_VERSION, asdict(DEMO_PHANTOMS)])[:8]
    folder = home.root / "phantoms" / f"{scans}-scans-seed-{seed}-{settings}"
    log = get_run_logger()

    def say(done: int, total: int) -> None:
        if done % max(total // 4, 1) == 0 or done == total:
            log.info("drawing: %d of %d synthetic scans", done, total)

    # A finished folder is checked against the settings and left as it is.
    with locked(folder):  # a second run at once waits, and finds it finished
        there = (folder / "phantom.json").exists()
        write_phantoms(folder, scans=scans, seed=seed, settings=DEMO_PHANTOMS, progress=say)
    return kept(folder) if there else folder


@task(name="convert_scan", task_run_name="convert {truth.series_uid}", retries=2, cache_policy=NO_CACHE)
def convert_scan(
    truth: ScanTruth, home: Home, *, recheck: bool = False, again: Round | None = None
) -> State | StoredScan | None:
    """Check one scan and write it as a Zarr store; None, with its reason in the quarantine, when it cannot be read.

    A scan set aside before is not read again while its files and the code that reads them are the same, unless
    `recheck` says so. What is converted already is converted `again` where a round wants it.
    """
    log = get_run_logger()
    path = home.scans / f"{truth.series_uid}.zarr"
    verdict = ""
    try:
        with said_when_overdue(log, f"reading {truth.series_uid}"):
            fingerprint = scan_fingerprint(truth.path)
        key = store.scan_key(fingerprint)
        stored = StoredScan(truth=truth, store=path, fingerprint=fingerprint)
        if _stays(path, key, again, f"convert {truth.series_uid}"):
            release(home.quarantine_csv, truth.series_uid)
            return kept(stored)
        verdict = digest([fingerprint, code_digest(READING_MODULES)])
        reason = None if recheck else known_reason(home.quarantine_csv, truth.series_uid, verdict)
        if reason:
            log.warning("still set aside (--recheck tries it again): %s", reason)
            return None
        with (
            said_when_overdue(log, f"reading {truth.series_uid}"),
            source_described(truth.path) as source,  # a checksum of every byte, while the voxels are read and packed
        ):
            scan = read_scan(truth.path)
            for warning in scan.warnings:
                log.warning("%s: %s", truth.series_uid, warning, extra={"summed": True})  # see `warn_in_sum`
            stored = replace(stored, warnings=scan.warnings)
            store.write_scan(path, scan.hu, scan.grid, key=key, source=source)
        if scan_fingerprint(truth.path) != fingerprint:
            raise OSError(errno.ESTALE, "changed while it was read; run again once it is whole", str(truth.path))
    except ScanError as error:
        set_aside(home.quarantine_csv, truth.series_uid, truth.path, str(error), key=verdict)
        log.warning("set aside: %s", error)
        return None
    release(home.quarantine_csv, truth.series_uid)
    if again:
        again.done("prepare", f"convert {truth.series_uid}")
    log.info("%s: %d slices", truth.series_uid, len(scan.hu))
    return stored


def warn_in_sum(converted: Sequence[StoredScan | None]) -> None:
    """Say once for each kind what was warned of while scans were read, and of how many: each has its line elsewhere.

    Two warnings are of a kind when they differ in numbers only.
    """
    kinds: dict[str, list[str]] = {}
    for scan in filter(None, converted):
        for warning in scan.warnings:
            told = kinds.setdefault(re.sub(r"\d+(\.\d+)*", "N", warning), [])
            told.append(f"{scan.truth.series_uid}: {warning}")
    for lines in kinds.values():
        get_run_logger().warning("%d of %d scans, such as %s", len(lines), len(converted), lines[0])


@task(name="publish_quarantine", task_run_name="publish quarantine", cache_policy=NO_CACHE)
def publish_quarantine(truths: Sequence[ScanTruth], home: Home) -> int:
    """Show which scans of the data set are set aside, and why, as a table in Prefect's UI; returns how many."""
    own = {truth.series_uid for truth in truths}
    rows = [row for row in read_quarantine(home.quarantine_csv) if row["series_uid"] in own]
    table = [{"series": row["series_uid"], "reason": _short_reason(row), "since": row["time"]} for row in rows]
    create_table_artifact(
        key="quarantine",
        table=table or [{"series": "none", "reason": "every scan reads well", "since": ""}],
        description=f"{len(rows)} of {len(truths)} scans are set aside. Mended ones are tried again by themselves, "
        "all of them with `--recheck`.",
    )
    return len(rows)


def with_reasons(truths: Sequence[ScanTruth], home: Home) -> tuple[ScanTruth, ...]:
    """Some scans with the reasons why they are set aside, as the quarantine has them."""
    reasons = {row["series_uid"]: _reason(row) for row in read_quarantine(home.quarantine_csv)}
    return tuple(replace(truth, reason=reasons.get(truth.series_uid, "")) for truth in truths)


def _short_reason(row: Mapping[str, str]) -> str:
    """Why a scan is set aside, beside its uid: without the file's name where that is the uid again."""
    uid, reason = row["series_uid"], _reason(row)
    return re.sub(rf"{re.escape(uid)}(?=\.)", "", reason.removeprefix(f"{Path(row['path']).name}: "))


def _reason(row: Mapping[str, str]) -> str:
    """Why a scan is set aside, without its folder: a name there may say more of a patient than anybody should read."""
    path = Path(row["path"])
    reason = row["reason"].replace(f"{path.parent}/", "")
    if path.suffix or row["series_uid"] in path.name:
        return reason
    return reason.replace(path.name, row["series_uid"])  # a series that is a folder itself


@task(name="build_mask", task_run_name="mask {scan.truth.series_uid}", retries=2, cache_policy=NO_CACHE)
def build_mask(scan: StoredScan, rule: MaskRule, again: Round | None = None) -> State | StoredScan:
    """Write one scan's annotation mask into its store."""
    key, what = mask_key(scan, rule), f"mask {scan.truth.series_uid}"
    if _stays(scan.store / MASK_NAMES[rule], key, again, what):
        return kept(scan)
    hu, grid = store.read_volume(scan.store, key=store.scan_key(scan.fingerprint)), store.read_grid(scan.store)
    contours = {}
    if rule == "consensus":
        try:
            contours = consensus_boxes(scan.truth.drawn, scan.truth.readings, grid)
        except LidcError as error:
            get_run_logger().warning("%s: %s", scan.truth.series_uid, error)
        without = len(scan.truth.drawn) - len(contours)
        if without:
            get_run_logger().warning(
                "%s: %d nodules have no contours that fit: drawn by the rule bounded", scan.truth.series_uid, without
            )
    found = nodule_boxes(hu, scan.truth.drawn, grid, rule, contours)
    if found.left_out:
        get_run_logger().warning(
            "%s: %d annotated nodules lie outside the scan and cannot be learned from",
            scan.truth.series_uid,
            len(found.left_out),
        )
    store.write_mask(scan.store, MASK_NAMES[rule], grid.shape_irc, list(found.boxes.values()), key=key)
    if again:
        again.done("prepare", what)
    return scan


@task(name="cache_crops", task_run_name="crops {scan.truth.series_uid}", retries=2, cache_policy=NO_CACHE)
def cache_crops(
    scan: StoredScan,
    home: Home,
    *,
    recipe_name: str,
    rule: MaskRule,
    negatives: NegativePlan,
    negative_slabs_per_scan: int,
    seed: int,
    again: Round | None = None,
) -> State | PreparedScan:
    """Cut one scan's crops and slabs into the crop cache.

    Training scans keep the negatives that the recipe asks for; validation and test scans keep all, and no slabs: those
    are the same for every recipe. What two runs want differently lies in two folders, so that runs of other settings
    on one home do not take each other's crops away.

    What readers corrected on a training scan is cut whatever the recipe asks for: nodules of unknown malignancy, and
    places that are none; the latter get slabs where the recipe has any without a nodule.
    """
    truth = scan.truth
    training, drawn = truth.split == "train", truth.negatives_xyz is None
    draws = seed if drawn or negatives.kind != "all" else None
    wanted = [asdict(negatives), negative_slabs_per_scan, rule, draws] if training else [seed] if drawn else []
    name = f"{recipe_name}-{digest(wanted)[:8]}" if training else f"judged-{seed}" if drawn else "judged"
    folder = home.crops / f"{name}.zarr" / truth.series_uid
    key = {
        "scan": store.scan_key(scan.fingerprint),
        "mask": mask_key(scan, rule) if training else None,
        "format_version": crop_cache.CROP_FORMAT_VERSION,
        "code": code_digest(CROP_MODULES),
        "drawn": [NEGATIVE_DISTANCE_MM, DRAWN_NEGATIVES_PER_SCAN] if drawn else None,
        "nodules": digest([asdict(n) for n in truth.nodules]),
        "negatives": digest(None if truth.negatives_xyz is None else truth.negatives_xyz.tolist()),
        "findings": digest(truth.findings_xyz.tolist()) if drawn else None,
        "wanted": wanted,
        "series_uid": truth.series_uid,
        # Without corrections the key is what it always was.
        **({"unjudged": digest([asdict(n) for n in truth.unjudged])} if truth.unjudged else {}),
        **({"rejected": digest(truth.rejected_xyz)} if truth.rejected_xyz else {}),
        **({"disputed": digest([asdict(e) for e in truth.disputed])} if truth.disputed else {}),
    }
    prepared = PreparedScan(
        series_uid=truth.series_uid,
        split=truth.split,
        store=scan.store,
        mask_name=MASK_NAMES[rule],
        crops=folder,
        crops_digest=groups.key_digest(key),
        # Validation and test scans are cut alike, but a model chosen on some is not one that was tested on them.
        digest=groups.key_digest({**key, "mask": mask_key(scan, rule), **({} if training else {"side": truth.split})}),
        nodules=truth.nodules,
        excluded=truth.excluded,
        patient=truth.patient,
        unrated=truth.unrated,
        textures=truth.textures,
        unjudged=truth.unjudged,
        reads=_reads(truth, key, mask_key(scan, rule), slabs=negative_slabs_per_scan if training else None),
    )
    if _stays(folder, key, again, f"crops {truth.series_uid}"):
        return kept(prepared)
    hu, grid = store.read_volume(scan.store, key=store.scan_key(scan.fingerprint)), store.read_grid(scan.store)
    # The uid is part of the seed: a scan draws the same places whatever other scans there are.
    rng = np.random.default_rng([seed, int(digest(truth.series_uid)[:12], 16)])
    sites = _nodule_sites(truth, grid)
    with_slabs = len(sites)
    sites += _sites_of_none(np.array(truth.rejected_xyz, dtype=np.float64).reshape(-1, 3), grid, crop_cache.REJECTED)
    if negative_slabs_per_scan:
        with_slabs = len(sites) + negative_slabs_per_scan
    places_xyz = truth.negatives_xyz
    if places_xyz is None:
        places_xyz = lung_positions(
            hu,
            grid,
            truth.findings_xyz,
            count=(negatives.kept_per_scan if training else None) or DRAWN_NEGATIVES_PER_SCAN,
            min_distance_mm=NEGATIVE_DISTANCE_MM,
            rng=rng,
        )
    if training:  # drawn ones too: they come tissue first, and each epoch of a plan shall see some of both
        places_xyz = places_xyz[kept_negatives(len(places_xyz), negatives, rng)]
    sites += _sites_of_none(places_xyz, grid, crop_cache.NON_NODULE)
    slabs = range(min(len(sites), with_slabs)) if training else range(0)
    mask = np.zeros(hu.shape, np.uint8)
    if slabs:
        mask = store.read_mask(scan.store, MASK_NAMES[rule], key=mask_key(scan, rule))
        if truth.disputed:
            mask = crop_cache.ignoring(mask, [(one.center_xyz, one.diameter_mm) for one in truth.disputed], grid)
    crop_cache.write_scan_crops(folder, hu, mask, grid, sites, slab_sites=slabs, key=key)
    if again:
        again.done("prepare", f"crops {truth.series_uid}")
    return prepared


def _reads(truth: ScanTruth, key: Mapping[str, Any], mask: Mapping[str, Any], *, slabs: int | None) -> Reads:
    """What each stage reads of a scan's data, so that a label alone trains no U-Net and no nodule classifier anew.

    Args:
        truth: of the scan.
        key: of its crops.
        mask: of its mask.
        slabs: how many non-nodules get slabs, on a training scan; None on others, which the U-Net sees whole.
    """
    voxels = digest([truth.split, *(key[name] for name in ("series_uid", "scan", "format_version", "code"))])
    places = digest([(n.center_xyz, n.diameter_mm) for n in truth.drawn])
    labels = digest([asdict(n) for n in truth.nodules])
    # Of a training scan, neither how many get slabs nor the mask's rule: no crop depends on them.
    draws = key["wanted"] if slabs is None else [key["wanted"][0], key["wanted"][-1]]
    others = digest([draws, truth.rejected_xyz, *(key[name] for name in ("drawn", "negatives", "findings"))])
    if slabs is None:
        around, told = digest([asdict(e) for e in truth.excluded]), labels
    else:
        around, told = digest([[slabs, others] if slabs else [], key.get("disputed")]), ""
    return Reads(
        slices=digest([voxels, mask, around]),
        crops=digest([voxels, places, others, told]),
        labels=digest([voxels, labels]),
    )


def _nodule_sites(truth: ScanTruth, grid: Grid) -> list[crop_cache.CropSite]:
    """The nodules within a scan, those of unknown malignancy last."""
    sites = [
        crop_cache.CropSite(
            center_irc=tuple(xyz_to_irc(n.center_xyz, grid)),
            label=crop_cache.MALIGNANT if n.malignant else crop_cache.BENIGN,
            diameter_mm=n.diameter_mm,
            ratings=n.ratings,
        )
        for n in truth.nodules
    ]
    sites += [
        crop_cache.CropSite(
            center_irc=tuple(xyz_to_irc(n.center_xyz, grid)), label=crop_cache.UNJUDGED, diameter_mm=n.diameter_mm
        )
        for n in truth.unjudged
    ]
    return [site for site in sites if _inside(site.center_irc, grid.shape_irc)]


def _sites_of_none(places_xyz: npt.NDArray[np.float64], grid: Grid, label: int) -> list[crop_cache.CropSite]:
    """Those of some places (n, 3), mm, that lie within a scan and are no nodules, in their order."""
    return [
        crop_cache.CropSite(center_irc=tuple(c), label=label, diameter_mm=float("nan"))
        for c in xyz_to_irc(places_xyz, grid)
        if _inside(c, grid.shape_irc)
    ]


def _stays(group: Location, key: Mapping[str, Any], again: Round | None, what: str) -> bool:
    """Whether finished work lies there that nobody wants anew; what is wanted anew stands until that is whole."""
    if not is_current(group, key) or (again and again.due("prepare", what)):
        return False
    groups.touch(group)
    return True


def mask_key(scan: StoredScan, rule: MaskRule) -> dict[str, Any]:
    """What a scan's mask depends on."""
    return {
        "scan": store.scan_key(scan.fingerprint),
        "rule": rule,
        "version": MASK_VERSION,
        "code": code_digest((*MASK_MODULES, *CONTOUR_MODULES) if rule == "consensus" else MASK_MODULES),
        "nodules": digest([(n.center_xyz, n.diameter_mm) for n in scan.truth.drawn]),
        "contours": digest([_outlines(n) for n in scan.truth.readings]) if rule == "consensus" else None,
    }


def _outlines(nodule: LidcNodule) -> list[Any]:
    """Everything that decides a nodule's consensus mask."""
    return [
        [reading.reader, [[line.z_mm, line.inclusion, line.points.tolist()] for line in reading.contours]]
        for reading in nodule.readings
    ]


def _inside(center_irc: Sequence[float] | npt.NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    return all(-0.5 <= c < n - 0.5 for c, n in zip(center_irc, shape))
