"""Which of some bundles is the best, on scans that none of them learned from, and could that be luck?"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from lungml import compare, luna, store
from lungml import findings as finding
from lungml.classify import classify
from lungml.errors import LunaError, one_line
from lungml.files import write_csv_atomic, write_text_atomic
from lungml.geometry import xyz_to_irc
from lungml.groups import read_attributes
from lungml.home import Home
from lungml.phantom import is_phantom_uid
from lungml.remote import Location
from tasks import registry, tracking
from tasks.bundles import load_bundle
from tasks.caching import INFERENCE_MODULES, code_digest, digest
from tasks.data import StoredScan
from tasks.evaluation import (
    Chosen,
    Readable,
    SplitScore,
    bundle_content,
    end_to_end_metrics,
    findings_folder,
    score_findings,
)
from tasks.pipeline import Pipeline
from tasks.truth import ScanTruth, data_origin, read_truths

ANY_STRIDE = luna.MIN_VAL_STRIDE  # of a split that nobody keeps
PUBLISHED = "published"  # the recipe of imported weights
ANNOTATED_COLUMNS = ("series_uid", "x_mm", "y_mm", "z_mm", "diameter_mm", "malignant", "prob_malignant")


class EvaluationError(LunaError):
    """A bundle cannot be judged on these scans; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedScan:
    """A scan to be judged on; other than for training, nothing but its store is needed."""

    series_uid: str
    store: Location
    nodules: tuple[luna.Nodule, ...]
    excluded: tuple[luna.Excluded, ...]

    @classmethod
    def of(cls, stored: StoredScan) -> EvaluatedScan:
        """What is left of a converted scan."""
        truth = stored.truth
        return cls(series_uid=truth.series_uid, store=stored.store, nodules=truth.nodules, excluded=truth.excluded)


@task(name="judge_annotated", cache_policy=NO_CACHE)
def judge_annotated(scans: Sequence[Readable], bundle_uri: str, pipeline: Pipeline) -> dict[str, tuple[float, ...]]:
    """What a bundle's malignancy model says at the annotated centre of every nodule; by series_uid, in their order.

    Each scan's answers lie beside its findings, in `annotated.csv`.
    """
    home, members = pipeline.home, bundle_content(pipeline.home, bundle_uri)
    said: dict[str, tuple[float, ...]] = {}
    for scan in scans:
        file = findings_folder(home, members, scan.series_uid) / "annotated.csv"
        stamp = file.with_name("annotated.key")
        nodules = [(nodule.center_xyz, nodule.diameter_mm, nodule.malignant) for nodule in scan.nodules]
        voxels = read_attributes(scan.store)["key"]
        key = digest([voxels, members, code_digest(INFERENCE_MODULES), nodules])
        if not (file.exists() and stamp.exists() and stamp.read_text() == key):
            probs = _at_centers(scan, load_bundle(home, bundle_uri, pipeline.device))
            rows = [
                (scan.series_uid, *(f"{mm:.4f}" for mm in center), f"{diameter:.4f}", malignant, f"{prob:.9g}")
                for (center, diameter, malignant), prob in zip(nodules, probs, strict=True)
            ]
            write_csv_atomic(file, ANNOTATED_COLUMNS, rows)
            write_text_atomic(stamp, key)
        with file.open(newline="") as handle:
            said[scan.series_uid] = tuple(float(row["prob_malignant"]) for row in csv.DictReader(handle))
    return said


def _at_centers(scan: Readable, bundle: finding.Bundle) -> list[float]:
    grid = store.read_grid(scan.store)
    centers = xyz_to_irc(np.array([nodule.center_xyz for nodule in scan.nodules]).reshape(-1, 3), grid)
    probs = classify(
        store.read_volume(scan.store), centers, bundle.malignancy, grid=grid, flips="malignancy" in bundle.flips
    )
    return [float(prob) for prob in probs.mean(axis=0)]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Some scans to be judged on.

    Attributes:
        name: of their folder.
        chosen: which of them.
        truths: what is known of each.
        origin: see `data_origin`.
        sides: what this home's split.csv says of its series, these and others.
        trained_patients: marks of the patients whose series train in this home.
    """

    name: str
    chosen: Chosen
    truths: tuple[ScanTruth, ...]
    origin: Literal["real", "phantom"]
    sides: Mapping[str, luna.Split]
    trained_patients: frozenset[str]

    @property
    def words(self) -> str:
        """What the scans are, wherever a figure of them is printed."""
        return "synthetic scans" if self.origin == "phantom" else "real scans"


def read_tree(luna_dir: Path, tables_dir: Path | None, chosen: Chosen, home: Home) -> tuple[tuple[str, ...], Tree]:
    """What should be said aloud about a tree of scans, and those of its scans that shall be judged.

    The home's split is read, not written: a tree that only judges a bundle never becomes training data by it.

    Args:
        luna_dir, tables_dir: LUNA16's, or others in its layout.
        chosen: all of them, or one side of the home's split.
        home: whose split.csv is asked.

    Raises:
        EvaluationError: no scan is chosen.
        TableError, SplitError: see `read_truths`.
    """
    if chosen not in get_args(Chosen):
        raise EvaluationError(f"--split {chosen!r} is none of {', '.join(get_args(Chosen))}")
    sides, marks = luna.frozen_patients(home.split_csv)
    with tempfile.TemporaryDirectory() as folder:
        notes, truths = read_truths(luna_dir, tables_dir, ANY_STRIDE, Home(Path(folder)), for_training=False)
    kept_back = [truth for truth in truths if chosen == "all" or sides.get(truth.series_uid) == chosen]
    if not kept_back:
        raise EvaluationError(
            one_line(f"{luna_dir}: none of its {len(truths)} scans is on the {chosen} side of {home.split_csv}")
            + "; give --split all to judge a bundle on scans that no training has seen"
        )
    return notes, Tree(
        name=luna_dir.name,
        chosen=chosen,
        truths=tuple(kept_back),
        origin=data_origin(kept_back),
        sides=sides,
        trained_patients=frozenset(marks[uid] for uid, side in sides.items() if side == "train" and uid in marks),
    )


def check_unseen(tree: Tree, bundle_uri: str, home: Home) -> tuple[str, ...]:
    """Refuse to judge a bundle on scans, or patients, that it learned from, unless they were asked for by name.

    The runs of its models say which series they learned from. Where one does not, what split.csv of this home lets
    train is what its bundles learned from. Of weights from elsewhere nothing is known.

    Args:
        tree: the scans.
        bundle_uri: of the bundle.
        home: where it was trained.

    Returns:
        What should be said aloud.

    Raises:
        EvaluationError: some of the scans were trained on.
        TrackingError: no such bundle.
    """
    fields = registry.read_bundle(home, bundle_uri)
    drawn = [is_phantom_uid(truth.series_uid) for truth in tree.truths]
    if fields["recipe"] == PUBLISHED:
        known = "" if all(drawn) else f"it is not known which scans {bundle_uri} learned from: a score may flatter it"
        return (known,) if known else ()
    if fields["origin"] == "real" and all(drawn):
        return ()
    members = [uri for member in registry.BUNDLE_MEMBERS for uri in registry.member_uris(fields, member)]
    told = [tracking.model_scans(home, uri) for uri in members]
    learned = {uid for scans in told for uid, split in scans.items() if split == "train"}
    if not all(told):
        learned |= {uid for uid, side in tree.sides.items() if side == "train"}
    trained = [truth for truth in tree.truths if truth.series_uid in learned or truth.patient in tree.trained_patients]
    if trained and tree.chosen == "train":
        return (f"{bundle_uri} learned from these scans: its score is no measure of new ones",)
    if trained:
        raise EvaluationError(
            f"{bundle_uri} learned from {len(trained)} of these {len(tree.truths)} scans, or from their patients "
            f"(such as {trained[0].series_uid}); give --split val or --split test, "
            "or other scans"
        )
    chose = sum(tree.sides.get(truth.series_uid) == "val" for truth in tree.truths)
    return (f"{chose} of {len(tree.truths)} scans helped to choose {bundle_uri}: they flatter it",) if chose else ()


@dataclass(frozen=True, kw_only=True)
class BundleScore:
    """How one bundle did on a tree, and on every resample of its scans.

    Attributes:
        bundle_uri: as it was asked for.
        recipe: it was trained by.
        score: the table and LUNA16's official score; the split's name is the side that was chosen.
        samples: every statistic of `lungml.compare`.
        over_diameter: the malignancy model's AUC less the annotated diameter's, on the same nodules.
    """

    bundle_uri: str
    recipe: str
    score: SplitScore
    samples: Mapping[compare.Statistic, compare.Sampled]
    over_diameter: compare.Difference

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: scores with their bands, the table, the official score, and the difference to the diameter."""
        scans = self.score.table.scans
        return {
            "bundle": self.bundle_uri,
            "recipe": self.recipe,
            "scores": {name: sampled.as_dict() for name, sampled in self.samples.items()},
            "candidates_per_scan": self.score.candidates / scans,
            "false_positives_per_scan": self.score.table.false_positives / scans,
            "malignancy_auc_over_diameter_auc": self.over_diameter.as_dict(),
            "table": self.score.table.as_dict(),
            "froc": self.score.froc.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Some bundles on the same scans.

    Attributes:
        tree: the scans.
        bundles: in the order they were asked for.
        differences: of every bundle but the first: what it reaches less what the first reaches.
        seed: of the resamples.
        set_aside: scans that could not be read; their nodules count as missed.
    """

    tree: Tree
    bundles: tuple[BundleScore, ...]
    differences: tuple[Mapping[compare.Statistic, compare.Difference], ...]
    seed: int
    set_aside: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "data": self.tree.words,
            "tree": self.tree.name,
            "split": self.tree.chosen,
            "scans": len(self.tree.truths),
            "set_aside": list(self.set_aside),
            "seed": self.seed,
            "resamples": compare.RESAMPLES,
            "band": "95 %, percentiles of resamples of whole scans; both sides of a difference on the same resamples",
            "p_value": compare.P_VALUE,
            "bundles": [bundle.as_dict() for bundle in self.bundles],
            "differences": [
                {
                    "first": self.bundles[0].bundle_uri,
                    "second": bundle.bundle_uri,
                    **{name: difference.as_dict() for name, difference in differences.items()},
                }
                for bundle, differences in zip(self.bundles[1:], self.differences)
            ],
            "series_uids": [truth.series_uid for truth in self.tree.truths],
        }


@task(name="score_bundle", task_run_name="score {bundle_uri}", cache_policy=NO_CACHE)
def score_bundle(
    tree: Tree,
    scans: Sequence[Readable],
    files: Sequence[Path],
    judged: Mapping[str, Sequence[float]],
    bundle_uri: str,
    pipeline: Pipeline,
) -> BundleScore:
    """Score one bundle on a tree and on the resamples of its scans that the seed decides."""
    fields = registry.read_bundle(pipeline.home, bundle_uri)
    read = {scan.series_uid for scan in scans}
    aside = [truth for truth in tree.truths if truth.series_uid not in read]
    score = score_findings.fn(tree.chosen, scans, files, aside, bundle_uri, pipeline, bootstraps=0)
    system = compare.build_system(
        {scan.series_uid: finding.read_findings(file) for scan, file in zip(scans, files, strict=True)},
        {truth.series_uid: truth.nodules for truth in tree.truths},
        {truth.series_uid: truth.excluded for truth in tree.truths},
        [truth.series_uid for truth in tree.truths],
        prob_malignant=judged,
        nodule_threshold=fields["nodule_threshold"],
        malignant_threshold=fields["malignant_threshold"],
    )
    times = compare.draw_resamples(len(tree.truths), compare.RESAMPLES, np.random.default_rng(pipeline.seed))
    samples = compare.sample(system, times)
    return BundleScore(
        bundle_uri=bundle_uri,
        recipe=fields["recipe"],
        score=score,
        samples=samples,
        over_diameter=compare.against_diameter(samples),
    )


@task(name="log_evaluation", cache_policy=NO_CACHE)
def log_evaluation(evaluation: Evaluation, folder: Path | None, pipeline: Pipeline) -> Path:
    """Write `evaluation.json` and log one row a bundle in `luna-end-to-end`; returns the file's path.

    Args:
        evaluation: what to keep.
        folder: where to; when not given, one under the home that equal evaluations share.
        pipeline: of this run.
    """
    home, tree = pipeline.home, evaluation.tree
    series = digest([truth.series_uid for truth in tree.truths])
    bundles = [bundle_content(home, bundle.bundle_uri) for bundle in evaluation.bundles]
    key = digest([series, bundles, evaluation.seed])
    file = (folder or home.reports / "evaluations" / key) / "evaluation.json"
    text = json.dumps(evaluation.as_dict(), indent=1, allow_nan=False)
    write_text_atomic(file, text + "\n")
    for bundle, members in zip(evaluation.bundles, bundles):
        score, chosen = bundle.score, tree.chosen
        with tracking.open_run(
            home,
            "end-to-end",
            name=f"{bundle.bundle_uri.removeprefix('models:/').replace('/', '-')} on {tree.name} {chosen}",
            pipeline_id=pipeline.pipeline_id,
            params={
                "bundle": bundle.bundle_uri,
                **{member: members[member] for member in registry.BUNDLE_MEMBERS},
                "recipe": bundle.recipe,
                "scans": f"{tree.name} {chosen} {series}",
                "seed": str(evaluation.seed),
                "origin": pipeline.origin,
            },
            tags={"luna.origin": pipeline.origin, "luna.evaluation": key},
        ) as run:
            metrics = end_to_end_metrics(score)
            metrics["cpm_low"], metrics["cpm_high"] = bundle.samples["cpm"].band
            for name in ("malignancy_auc", "diameter_auc", "end_to_end_malignancy_auc"):
                metrics[name] = bundle.samples[name].observed
            metrics["malignancy_over_diameter_low"], metrics["malignancy_over_diameter_high"] = (
                bundle.over_diameter.band
            )
            run.log_metrics({f"{chosen}/{name}": value for name, value in metrics.items()})
            run.log_text(text, "evaluation.json")
            run.log_text(score.table.to_text(), f"{chosen}/table.txt")
    return file
