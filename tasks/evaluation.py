"""How well does a bundle do, end to end, on scans it was not trained on?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml import findings as finding
from lungml import luna, store
from lungml.files import write_text_atomic
from lungml.froc import FPS_PER_SCAN, FrocResult, froc
from lungml.groups import read_attributes
from lungml.home import Home
from lungml.remote import Location
from lungml.score import COLUMNS, Table, score_table
from tasks import registry, tracking
from tasks.bundles import load_bundle
from tasks.caching import INFERENCE_MODULES, code_digest, digest, kept
from tasks.pipeline import Pipeline, TrainedModel

BOOTSTRAPS = 1000  # the official score's
Chosen = Literal["all", "train", "val", "test"]


class Known(Protocol):
    """A scan whose nodules are known."""

    @property
    def series_uid(self) -> str: ...
    @property
    def nodules(self) -> tuple[luna.Nodule, ...]: ...
    @property
    def excluded(self) -> tuple[luna.Excluded, ...]: ...


class Readable(Known, Protocol):
    """One that lies in a store as well: `PreparedScan` does."""

    @property
    def store(self) -> Location: ...


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """One split, end to end.

    Attributes:
        table: the report's.
        froc: the challenge's official score.
        candidates: places the segmenter offered, in all scans together.
    """

    split: Chosen
    table: Table
    froc: FrocResult
    candidates: int


@task(name="find_nodules", task_run_name="find {scan.series_uid}", retries=2, cache_policy=NO_CACHE)
def find_nodules(scan: Readable, bundle_uri: str, pipeline: Pipeline) -> State | Path:
    """Write one scan's `findings.csv`; returns its path."""
    home = pipeline.home
    members = bundle_content(home, bundle_uri)
    # The voxels' own key: how crops for training are cut from them changes no finding.
    key = digest([read_attributes(scan.store)["key"], members, code_digest(INFERENCE_MODULES)])
    file = findings_folder(home, members, scan.series_uid) / "findings.csv"
    stamp = file.with_name("findings.key")
    if file.exists() and stamp.exists() and stamp.read_text() == key:
        return kept(file)
    bundle = load_bundle(home, bundle_uri, pipeline.device)
    found = finding.find_nodules(store.read_volume(scan.store), store.read_grid(scan.store), bundle)
    finding.write_findings(file, scan.series_uid, found)
    write_text_atomic(stamp, key)
    get_run_logger().info(
        "%s: %d candidates, %d taken for nodules",
        scan.series_uid,
        len(found),
        sum(f.stage != "filtered" for f in found),
    )
    return file


@task(name="score_findings", task_run_name="score {split}", cache_policy=NO_CACHE)
def score_findings(
    split: Chosen,
    scans: Sequence[Known],
    files: Sequence[Path],
    set_aside: Sequence[Known],
    bundle_uri: str,
    pipeline: Pipeline,
    *,
    bootstraps: int | None = None,
) -> SplitScore:
    """Score one split; the nodules of scans that were set aside count as missed.

    `bootstraps` are those of the official score's band: 0 for none, `BOOTSTRAPS` when not given.
    """
    fields = registry.read_bundle(pipeline.home, bundle_uri)
    found = {scan.series_uid: finding.read_findings(file) for scan, file in zip(scans, files, strict=True)}
    known = [*scans, *set_aside]
    nodules = {scan.series_uid: scan.nodules for scan in known}
    excluded = {scan.series_uid: scan.excluded for scan in known}
    table = score_table(
        found,
        nodules,
        nodule_threshold=fields["nodule_threshold"],
        malignant_threshold=fields["malignant_threshold"],
    )
    result = froc(
        found,
        nodules,
        excluded,
        list(nodules),
        bootstraps=BOOTSTRAPS if bootstraps is None else bootstraps,
        generator=np.random.default_rng(pipeline.seed),
    )
    candidates = sum(len(findings) for findings in found.values())
    return SplitScore(split=split, table=table, froc=result, candidates=candidates)


@task(name="log_end_to_end", cache_policy=NO_CACHE)
def log_end_to_end(
    scores: Sequence[SplitScore], bundle_uri: str, models: Sequence[TrainedModel], pipeline: Pipeline
) -> None:
    """One row in `luna-end-to-end`: the bundle, its members and what they reach together."""
    with tracking.open_run(
        pipeline.home,
        "end-to-end",
        name=bundle_uri.removeprefix("models:/").replace("/", "-"),
        pipeline_id=pipeline.pipeline_id,
        params={
            "bundle": bundle_uri,
            **{stage: ", ".join(m.uri for m in models if m.stage == stage) for stage in {m.stage for m in models}},
            "seed": str(pipeline.seed),
            "origin": pipeline.origin,
        },
        tags={"luna.origin": pipeline.origin},
    ) as run:
        for score in scores:
            run.log_metrics({f"{score.split}/{name}": value for name, value in end_to_end_metrics(score).items()})
            run.log_text(json.dumps(score.table.as_dict(), indent=1), f"{score.split}/table.json")
            run.log_text(json.dumps(score.froc.as_dict(), indent=1), f"{score.split}/froc.json")
            run.log_text(score.table.to_text(), f"{score.split}/table.txt")


@task(name="publish_summary", cache_policy=NO_CACHE)
def publish_summary(scores: Sequence[SplitScore], models: Sequence[TrainedModel], pipeline: Pipeline) -> None:
    """The run's result as a Prefect artifact."""
    lines = [
        f"# luna: {'synthetic scans' if pipeline.origin == 'phantom' else 'real scans'}, not for clinical use",
        "",
    ]
    lines += ["| model | best epoch | validation | test | URI |", "| --- | --- | --- | --- | --- |"]
    for model in models:
        val, test = (_short(metrics) for metrics in (model.val, model.test))
        lines.append(f"| {model.name} | {model.best_epoch} | {val} | {test} | `{model.uri}` |")
    for score in scores:
        lines += ["", f"## {score.split}", "", f"| | {' | '.join(COLUMNS)} |", f"| --- {'| ---: ' * 4}|"]
        lines += [f"| {' | '.join(row)} |" for row in score.table.rows()]
        lines += ["", f"CPM {score.froc.cpm:.3f}"]
    create_markdown_artifact("\n".join(lines), key="luna-summary", description="Models and end-to-end tables")


def bundle_content(home: Home, bundle_uri: str) -> dict[str, Any]:
    """Models, thresholds and grouping, not the version's number or commit: equal bundles give equal findings."""
    return {name: value for name, value in registry.read_bundle(home, bundle_uri).items() if name != "code"}


def findings_folder(home: Home, members: Mapping[str, Any], series_uid: str) -> Path:
    return home.reports / "findings" / digest(members) / series_uid


def end_to_end_metrics(score: SplitScore) -> dict[str, float]:
    table, result = score.table, score.froc
    by_fps = {f"sensitivity_at_{fps:g}_fps": value for fps, value in zip(FPS_PER_SCAN, result.sensitivity_at)}
    return {
        "cpm": result.cpm,
        "cpm_low": result.cpm_band[0],
        "cpm_high": result.cpm_band[1],
        **by_fps,
        "nodules": table.nodules,
        "found": table.found,
        "malignant": table.malignant,
        "malignant_flagged": table.malignant_flagged,
        "false_positives_per_scan": table.false_positives / table.scans,
        "candidates_per_scan": score.candidates / table.scans,
    }


def _short(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
