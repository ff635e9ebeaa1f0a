"""What can a person read about an evaluation? One page, with figures and the worst cases, and the same as Markdown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from lungml import store
from lungml.calibration import Calibration
from lungml.evaluation_report import draw_figures, render_html, render_markdown
from lungml.files import write_text_atomic
from lungml.pictures import draw_case
from lungml.plots import write_figures
from lungml.remote import Location
from lungml.report_facts import BundleMember, Compared, ReportFacts, undo_calibration
from lungml.scorecard import Scorecard
from lungml.worst_cases import Case
from tasks import registry, tracking
from tasks.finding import NamedBundle
from tasks.pipeline import Pipeline

Chosen = Literal["all", "train", "val", "test"]
# Prefect's page of an artifact takes half a megabyte.
MAX_MARKDOWN = 400_000


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """Where an evaluation's report lies.

    Attributes:
        split: of the scans that were judged.
        folder: `report.html`, `report.md` and the figures.
        markdown: the text of the second.
    """

    split: Chosen
    folder: Path
    markdown: str

    @property
    def page(self) -> Path:
        """The one to open."""
        return self.folder / "report.html"


@task(name="report_evaluation", task_run_name="report {split} of {bundle.name}", cache_policy=NO_CACHE)
def report_evaluation(
    split: Chosen,
    card: Scorecard,
    cases: Sequence[Case],
    stores: Mapping[str, Location],
    bundle: NamedBundle,
    pipeline: Pipeline,
    *,
    data: str,
    folder: Path,
    compared: Sequence[Compared] = (),
    notes: Sequence[str] = (),
) -> WrittenReport:
    """Write the report of one bundle on some scans, and show it in Prefect's UI.

    Args:
        split: of the scans.
        card: the bundle's scores.
        cases: the worst, to be shown.
        stores: of the scans that were read, by series_uid: the worst cases are shown.
        bundle: that was judged.
        pipeline: of this run; its origin is that of the scans.
        data: what the scans are called.
        folder: where the files go.
        compared: other bundles on the same scans.
        notes: what limits these scores: sentences that name no folder.
    """
    start, fields = time.monotonic(), bundle.fields
    calibration = Calibration.from_dict(fields.get("calibration"))
    facts = ReportFacts(
        title=f"{bundle.name} on {data}",
        origin=pipeline.origin,
        split=split,
        data=data,
        bundle_uri=bundle.name,
        bundle_origin=fields["origin"],
        bundle_commit=fields.get("code", ""),
        members=tuple(_members(fields)),
        grouping=fields["grouping"],
        calibration=calibration.methods,
        lungs_only=registry.bundle_settings(fields)["inference"].lungs_only,
        when=datetime.now(UTC),
        seed=pipeline.seed,
        commit=tracking.git_commit(),
        compared=tuple(compared),
        uncalibrated=undo_calibration(calibration, card),
        cases=tuple(cases),
        limits=tuple(notes),
    )
    figures = draw_figures(facts, card)
    pictures = draw_cases(cases, stores)
    markdown = render_markdown(facts, card)
    write_text_atomic(folder / "report.html", render_html(facts, card, figures, pictures))
    write_text_atomic(folder / "report.md", markdown)
    write_figures(folder / "figures", figures)
    create_markdown_artifact(
        markdown[:MAX_MARKDOWN],
        key=f"luna-evaluation-{split}",
        description=f"{bundle.name} on {data}, in {time.monotonic() - start:.0f} s; with pictures in MLflow",
    )
    return WrittenReport(split=split, folder=folder, markdown=markdown)


def draw_cases(cases: Sequence[Case], stores: Mapping[str, Location]) -> list[Figure]:
    """A picture of every case, in their order; each scan is read once and one at a time."""
    pictures: dict[int, Figure] = {}
    for series_uid in dict.fromkeys(case.series_uid for case in cases):
        hu, grid = store.read_volume(stores[series_uid]), store.read_grid(stores[series_uid])
        for place, case in enumerate(cases):
            if case.series_uid == series_uid:
                pictures[place] = draw_case(case, hu, grid)
    return [pictures[place] for place in range(len(cases))]


def _members(fields: Mapping[str, Any]) -> list[BundleMember]:
    return [
        BundleMember(stage=member, uri=uri, recipe=str(fields["recipe"]))
        for member in registry.BUNDLE_MEMBERS
        for uri in registry.member_uris(fields, member)
    ]
