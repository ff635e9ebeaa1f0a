"""What does a bundle say of a scan? Asked once, kept under everything that decides it, judged as often as need be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml import luna, store
from lungml.annotated import Annotated, meet_masks, read_annotated, write_annotated
from lungml.answers import Answers, read_answers, write_answers
from lungml.calibration import Calibration
from lungml.classify import classify
from lungml.devices import resolve_device
from lungml.files import write_text_atomic
from lungml.findings import Bundle, Finding, ask, asked_from, findings_text, judge, read_findings
from lungml.geometry import xyz_to_irc
from lungml.groups import StoreError, read_attributes
from lungml.home import Home
from lungml.remote import Location
from lungml.scorecard import Evidence
from tasks import registry
from tasks.bundles import build_bundle
from tasks.caching import INFERENCE_MODULES, JUDGING_MODULES, code_digest, digest, kept
from tasks.gpus import cuda_name, gpu_slots
from tasks.pipeline import Pipeline, may_pass

Held = TypeVar("Held", Answers, Annotated)
# Of a bundle, what decides its answers; thresholds and calibration only judge them.
ASKING = (*registry.BUNDLE_MEMBERS, "grouping", "test_time_flips", "inference", "judge_all")


class Known(Protocol):
    """A scan whose nodules are known."""

    @property
    def series_uid(self) -> str: ...
    @property
    def nodules(self) -> tuple[luna.Nodule, ...]: ...
    @property
    def unrated(self) -> tuple[luna.Annotation, ...]: ...
    @property
    def excluded(self) -> tuple[luna.Excluded, ...]: ...
    @property
    def textures(self) -> tuple[str, ...]: ...


class Readable(Known, Protocol):
    """One that lies in a store as well: `PreparedScan` does."""

    @property
    def store(self) -> Location: ...


def slug_of(uri: str) -> str:
    """A bundle's URI, or what it is called, as part of a file's name: luna-7."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", uri.removeprefix("models:/"))[:80].strip("-.")


@dataclass(frozen=True, kw_only=True)
class NamedBundle:
    """A bundle to be asked: a registered one, or one that is not registered yet.

    Attributes:
        name: its URI, or what it is called where it has none.
        fields: see `registry.check_bundle`.
    """

    name: str
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, home: Home, uri: str) -> NamedBundle:
        """The bundle behind a URI, as it is now: an alias moves on."""
        return cls(name=uri, fields=registry.read_bundle(home, uri))

    @property
    def slug(self) -> str:
        """The name as part of a file's: luna-7."""
        return slug_of(self.name)

    @property
    def content(self) -> dict[str, Any]:
        """What decides its findings: equal bundles give equal ones, whatever their version or commit."""
        plain = registry.plain_bundle(self.fields)
        return {name: plain[name] for name in registry.DECIDING_FIELDS if name in plain}

    def build(self, home: Home, device: str) -> Bundle:
        """Its models and settings, built once in a process."""
        return build_bundle(home, self.content, device)


@dataclass(frozen=True, kw_only=True)
class FoundScan:
    """Where a scan's answers and findings lie.

    Attributes:
        answers: what the networks said, raw.
        annotated: the same of its annotated nodules.
        key, truth_key: what the two were made from: what another run put in their place is not taken for them.
        findings: `findings.csv`: every candidate, judged.
    """

    series_uid: str
    answers: Path
    annotated: Path
    findings: Path
    key: str
    truth_key: str

    def read(self) -> tuple[Answers, Annotated]:
        """Both.

        Raises:
            StoreError: they are gone or damaged, or another run replaced them.
        """
        return self._there(read_answers(self.answers, self.key)), self.read_annotated()

    def read_annotated(self) -> Annotated:
        """The second alone, which is small and all that a score needs; errors as of `read`."""
        return self._there(read_annotated(self.annotated, self.truth_key))

    def _there(self, held: Held | None) -> Held:
        if held is None:
            raise StoreError(f"{self.answers.parent}: gone, damaged, or replaced by another run; run again")
        return held


def asking_of(content: Mapping[str, Any], calibration: Calibration, nodule_threshold: float) -> dict[str, Any]:
    """What of a bundle's content decides what its networks are asked: the answers lie under its digest."""
    asked = {name: content[name] for name in ASKING if name in content}
    return {**asked, "from": asked_from(calibration, nodule_threshold)}


@task(
    name="find_nodules",
    task_run_name="find {scan.series_uid} {bundle.name}",
    retries=2,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
)
def find_nodules(scan: Readable, bundle: NamedBundle, pipeline: Pipeline) -> State | FoundScan:
    """Ask a bundle about one scan and write its `findings.csv`; only what is not known yet is asked."""
    home = pipeline.home
    # The voxels' own key: how crops for training are cut from them changes no finding.
    voxels = read_attributes(scan.store)["key"]
    kind = resolve_device(pipeline.device).type
    # Settings and thresholds are all that is needed where no GPU is held.
    models = bundle.build(home, pipeline.device if kind == "cpu" else "cpu")
    content = bundle.content
    asking = asking_of(content, models.calibration, models.nodule_threshold)
    key = digest([voxels, asking, kind, code_digest(INFERENCE_MODULES)])
    truth = [(nodule.center_xyz, nodule.diameter_mm) for nodule in scan.nodules]
    folder = home.reports / "answers" / digest(asking) / scan.series_uid
    found = FoundScan(
        series_uid=scan.series_uid,
        answers=folder / "answers.npz",
        annotated=folder / f"annotated-{digest(truth)[:8]}.npz",
        key=key,
        truth_key=digest([key, truth, code_digest(JUDGING_MODULES)]),
        findings=home.reports / "findings" / digest(content) / scan.series_uid / "findings.csv",
    )
    answers, annotated = read_answers(found.answers, key), read_annotated(found.annotated, found.truth_key)
    again = pipeline.round
    if again and again.due("evaluate", found.truth_key):
        answers = annotated = None
    finished = answers is not None and annotated is not None
    grid = store.read_grid(scan.store)
    if answers is None or annotated is None:
        hu = store.read_volume(scan.store)
        with gpu_slots(pipeline.device) as gpus:
            asked = bundle.build(home, cuda_name(gpus, pipeline.device))
            if answers is None:
                answers = ask(hu, grid, asked)
                write_answers(found.answers, answers, key)
            centers = xyz_to_irc(np.array([nodule.center_xyz for nodule in scan.nodules]).reshape(-1, 3), grid)
            flips = "malignancy" in asked.flips
            said = classify(hu, centers, asked.malignancy, grid=grid, flips=flips, inference=asked.inference)
        segmented = meet_masks(answers.marked, hu, scan.nodules, grid, models.grouping.threshold)
        write_annotated(
            found.annotated, Annotated(prob_malignant=said.mean(axis=0), segmented=segmented), found.truth_key
        )
    if again:
        again.done("evaluate", found.truth_key)
    findings = judge(answers, grid, models)
    text = findings_text(scan.series_uid, findings)
    if finished and found.findings.exists() and found.findings.read_text() == text:
        return kept(found)
    write_text_atomic(found.findings, text)
    _tell(scan.series_uid, answers, findings)
    return found


def _tell(series_uid: str, answers: Answers, findings: Sequence[Finding]) -> None:
    log, left_out = get_run_logger(), answers.candidates.left_out
    kept_on = sum(f.stage != "filtered" for f in findings)
    log.info("%s: %d candidates, %d taken for nodules", series_uid, len(findings), kept_on)
    if left_out:
        log.warning("%s: %d further places are beyond the limit of candidates a scan", series_uid, left_out)


def gather_evidence(
    scans: Sequence[Readable], found: Sequence[FoundScan], set_aside: Sequence[Known], bundle: NamedBundle
) -> list[Evidence]:
    """What is true of some scans and what a bundle said of them; of those set aside it said nothing.

    Raises:
        StoreError: what was found is gone, or another run replaced it.
    """
    calibration = Calibration.from_dict(bundle.fields.get("calibration"))
    evidence = []
    for scan, files in zip(scans, found, strict=True):
        if files.series_uid != scan.series_uid:
            raise ValueError(f"{files.answers}: not of {scan.series_uid}")
        annotated = files.read_annotated()
        evidence.append(
            Evidence(
                series_uid=scan.series_uid,
                nodules=scan.nodules,
                unrated=scan.unrated,
                excluded=scan.excluded,
                findings=read_findings(files.findings),
                segmented=annotated.segmented,
                prob_malignant=tuple(calibration.malignancy_probs(annotated.prob_malignant).tolist()),
                slice_spacing_mm=float(store.read_grid(scan.store).spacing_irc[0]),
                textures=scan.textures,
            )
        )
    for truth in set_aside:
        evidence.append(
            Evidence(
                series_uid=truth.series_uid,
                nodules=truth.nodules,
                unrated=truth.unrated,
                excluded=truth.excluded,
                findings=None,
                segmented=None,
                prob_malignant=None,
                textures=truth.textures,
            )
        )
    return evidence
