"""From LUNA16's files to training-ready stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, unmapped
from prefect.runtime import flow_run

from flows.progress import gather
from flows.revive import run_again_later
from flows.runners import MappedRunner
from flows.watched import watched
from lungml.data_folders import DataFolders, remember_folders
from lungml.download import DownloadSettings
from lungml.files import sweep
from lungml.home import Home
from lungml.lidc_xml import LidcError
from lungml.luna_archives import LIDC_XML, parse_subsets
from lungml.masks import MaskRule
from lungml.reading.corrections import corrections_folder, read_versions
from lungml.recipes.data import PreparedScan, Split
from lungml.recipes.variants import recipe_of
from tasks.corrections import correct_truths, used_corrections, words_of
from tasks.data import build_mask, cache_crops, convert_scan, publish_quarantine, warn_in_sum, with_reasons
from tasks.download import download as fetch_luna
from tasks.rounds import open_round
from tasks.summaries import summarize_prepare
from tasks.truth import ScanTruth, data_origin, rate_nodules, read_tables


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a data set became.

    Attributes:
        scans: ready for training.
        set_aside: those that cannot be read, with their truth.
        origin: see `data_origin`.
        corrections: which of the readers' corrections were used, see `used_corrections`.
    """

    scans: tuple[PreparedScan, ...]
    set_aside: tuple[ScanTruth, ...]
    origin: Literal["real", "phantom"]
    corrections: Mapping[str, int] = field(default_factory=dict)


@flow(name="luna", flow_run_name="prepare {recipe}", task_runner=MappedRunner(), on_failure=[run_again_later])
@watched
def prepare(
    luna_dir: str,
    tables_dir: str | None = None,
    recipe: str = "demo",
    val_stride: int = 10,
    seed: int = 0,
    for_training: bool = False,
    recheck: bool = False,
    download: DownloadSettings | None = None,
    subsets: str | None = None,
    lidc: str | None = None,
    more: str | None = None,
    masks: MaskRule | None = None,
    overrides: Mapping[str, Any] | None = None,
    sides: Mapping[str, Split] | None = None,
    refresh: bool = False,
    corrections: int | None = None,
) -> Prepared:
    """Convert, mask and crop every scan of a LUNA16 tree, whatever of it is not done yet.

    Args:
        luna_dir: holds `**/<series_uid>.mhd`, or will once it is downloaded.
        tables_dir: holds the csv tables, when they do not lie in `luna_dir`.
        recipe: decides the masks and the crops.
        val_stride: every n-th series validates, the one after it tests.
        seed: of the choice of negatives.
        for_training: refuse a data set that leaves a split without a scan or without a kind of nodules.
        recheck: read scans that were set aside once more, though nothing of them has changed.
        download: from where to fetch what of LUNA16 is missing; None fetches nothing.
        subsets: which of its ten subsets to fetch, such as "0,3" or "0-4"; None fetches all.
        lidc: LIDC-IDRI's XML files, a folder or a zip: for annotations_with_malignancy.csv where it is not there, for
            the readers' contours, and for the truth of the scans in `more`.
        more: LIDC-IDRI's DICOM series; those outside LUNA16 join the training scans.
        masks: draw the nodules by this rule instead of the recipe's: report, bounded or consensus (of the readers'
            contours; bounded where there is none).
        overrides: single settings of the recipe to change, such as {"segmentation.fit.batch_size": 8}.
        sides: train, val or test of every scan, instead of the split that the home keeps: for one fold of several.
        refresh: convert, mask and cut every scan again though it is done; after a run that was cut short, what is left.
        corrections: use readers' corrections up to this version on training scans; 0 for none, all when not given.
    """
    home, settings = Home.from_env(), recipe_of(recipe, overrides=overrides)
    versions = read_versions(corrections_folder(home), corrections)
    sweep(home.root, home.crops, *[home.scans] if isinstance(home.scans, Path) else [])
    tables = Path(tables_dir) if tables_dir else None
    if download:
        # Called, not submitted: in this very thread, so that Ctrl-C reaches it.
        fetch_luna(Path(luna_dir), download, None if subsets is None else parse_subsets(subsets))
    fetched = Path(luna_dir) / LIDC_XML
    readings = Path(lidc) if lidc else fetched if (masks == "consensus" or more) and fetched.exists() else None
    if masks == "consensus" and readings is None:
        raise LidcError(luna_dir, "no readers' contours for the masks are here", "give LIDC's XML with --lidc")
    rate_nodules.submit(Path(luna_dir), tables, readings).result()
    truths = read_tables(
        Path(luna_dir),
        tables,
        val_stride,
        home,
        for_training=for_training,
        lidc=readings,
        more=Path(more) if more else None,
        sides=sides,
    )
    truths, resolved = correct_truths(truths, versions, home, for_training=for_training)
    remember_folders(home, DataFolders(luna_dir=Path(luna_dir), tables_dir=tables))
    rule = masks or settings.segmentation.mask_rule
    again = open_round(home, ["prepare"] if refresh else [], flow_run.parameters)
    converting = convert_scan.map(truths, home=unmapped(home), recheck=recheck, again=unmapped(again))
    kept: Counter[str] = Counter()
    converted = gather(converting, "converting", kept)
    publish_quarantine(truths, home)
    warn_in_sum(converted)
    masking = build_mask.map([scan for scan in converted if scan], rule=unmapped(rule), again=unmapped(again))
    masked = gather(masking, "drawing masks", kept)
    cut = cache_crops.map(
        masked,
        home=unmapped(home),
        recipe_name=unmapped(settings.name),
        rule=unmapped(rule),
        negatives=unmapped(settings.negatives),
        negative_slabs_per_scan=unmapped(settings.negative_slabs_per_scan),
        seed=unmapped(seed),
        again=unmapped(again),
    )
    scans = gather(cut, "cutting crops", kept)
    if again:
        again.close()
    set_aside = with_reasons([truth for truth, scan in zip(truths, converted) if scan is None], home)
    get_run_logger().info("%d scans prepared (%s), %d set aside", len(scans), _by_split(scans), len(set_aside))
    used = used_corrections(resolved, [scan.series_uid for scan in scans])
    if versions:
        get_run_logger().info(words_of(used))
    summarize_prepare(scans, set_aside, kept, data_origin(truths))
    return Prepared(
        scans=tuple(scans),
        set_aside=set_aside,
        origin=data_origin(truths),
        corrections=used,
    )


def _by_split(scans: Sequence[PreparedScan]) -> str:
    counts = Counter(scan.split for scan in scans)
    return ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test"))
