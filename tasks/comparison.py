"""Which of some bundles is the best, on scans that none of them learned from, and could that be luck?"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from prefect import task
from prefect.cache_policies import NO_CACHE

from lungml import compare, frozen_split, luna
from lungml.candidacy import kind
from lungml.errors import LunaError, one_line
from lungml.files import write_text_atomic
from lungml.home import Home
from lungml.phantom import is_phantom_uid
from lungml.remote import Location
from tasks import registry, tracking
from tasks.caching import digest
from tasks.data import StoredScan
from tasks.evaluation import SplitScore, log_score
from tasks.finding import NamedBundle
from tasks.pipeline import Pipeline
from tasks.provenance import used_by
from tasks.reporting import Chosen, WrittenReport
from tasks.truth import ScanTruth, data_name, data_origin, read_truths

ANY_STRIDE = frozen_split.MIN_VAL_STRIDE  # of a split that nobody keeps
PUBLISHED = "published"  # the recipe of imported weights


class EvaluationError(LunaError):
    """A bundle cannot be judged on these scans; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedScan:
    """A scan to be judged on; other than for training, nothing but its store is needed."""

    series_uid: str
    store: Location
    nodules: tuple[luna.Nodule, ...]
    unrated: tuple[luna.Annotation, ...]
    excluded: tuple[luna.Excluded, ...]
    textures: tuple[str, ...]

    @classmethod
    def of(cls, stored: StoredScan) -> EvaluatedScan:
        """What is left of a converted scan."""
        truth = stored.truth
        return cls(
            series_uid=truth.series_uid,
            store=stored.store,
            nodules=truth.nodules,
            unrated=truth.unrated,
            excluded=truth.excluded,
            textures=truth.textures,
        )


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Some scans to be judged on.

    Attributes:
        name: what they are called, see `data_name`.
        chosen: which of them.
        truths: what is known of each.
        origin: see `data_origin`.
        sides: what this home's split.csv says of its series, these and others.
        patients: series_uid -> mark of its patient, as far as the tree knows it.
    """

    name: str
    chosen: Chosen
    truths: tuple[ScanTruth, ...]
    origin: Literal["real", "phantom"]
    sides: Mapping[str, frozen_split.Split]
    patients: Mapping[str, str]

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
    sides, _ = frozen_split.frozen_patients(home.split_csv)
    with tempfile.TemporaryDirectory() as folder:
        notes, truths = read_truths(luna_dir, tables_dir, ANY_STRIDE, Home(Path(folder)), for_training=False)
    kept_back = [truth for truth in truths if chosen == "all" or sides.get(truth.series_uid) == chosen]
    if not kept_back:
        raise EvaluationError(
            one_line(f"{luna_dir}: none of its {len(truths)} scans is on the {chosen} side of {home.split_csv}")
            + "; give --split all to judge a bundle on scans that no training has seen"
        )
    return notes, Tree(
        name=data_name((truth.series_uid for truth in kept_back), data_origin(kept_back)),
        chosen=chosen,
        truths=tuple(kept_back),
        origin=data_origin(kept_back),
        sides=sides,
        patients={truth.series_uid: truth.patient for truth in truths if truth.patient},
    )


def check_unseen(tree: Tree, bundle: NamedBundle, home: Home) -> tuple[str, ...]:
    """Refuse to judge a bundle on scans, or patients, that it learned from, unless they were asked for by name.

    The runs of its models, and of those that they started from, say which series they learned from and which chose
    them. Where one does not, split.csv of this home stands in, as far as its scans are of the bundle's kind. Of weights
    from elsewhere nothing is known.

    Args:
        tree: the scans.
        bundle: registered or not.
        home: where it was trained.

    Returns:
        What should be said aloud.

    Raises:
        EvaluationError: some of the scans were trained on.
    """
    fields, series = bundle.fields, [truth.series_uid for truth in tree.truths]
    drawn = fields["origin"] == "phantom"
    # A bundle of real scans learned from none that were drawn, though they train in this home.
    own = {uid: side for uid, side in tree.sides.items() if drawn or not is_phantom_uid(uid)}
    unsaid = {} if fields["recipe"] == PUBLISHED else own
    used = used_by(home, fields, patients=tree.patients, unsaid=unsaid)
    trained = [uid for uid in series if any(uid in one.learned for one in used)]
    notes: list[str] = []
    if fields["origin"] != tree.origin:
        notes.append(f"{bundle.name} is made for {kind(fields['origin'])}, and is judged on {tree.words}")
    if trained and tree.chosen == "train":
        return (*notes, f"{bundle.name} learned from these scans: its score is no measure of new ones")
    if trained:
        raise EvaluationError(
            f"{bundle.name} learned from {len(trained)} of these {len(series)} scans, or from their patients "
            f"(such as {trained[0]}); give --split validation or --split test, or other scans"
        )
    if any(one.silent for one in used) and (drawn or not all(map(is_phantom_uid, series))):
        notes.append(f"it is not known which scans {bundle.name} learned from: a score may flatter it")
    chose = sum(any(uid in one.chose for one in used) for uid in series)
    if chose:
        notes.append(f"{chose} of {len(series)} scans helped to choose {bundle.name}: they flatter it")
    return tuple(notes)


def without_folders(notes: Sequence[str], *folders: Path | None) -> tuple[str, ...]:
    """The notes, each once, as they may leave this machine: files in some folders lose their folder's name."""
    prefixes = {f"{path}{os.sep}" for folder in folders if folder for path in (folder, folder.resolve())}
    shown = []
    for note in dict.fromkeys(notes):
        for prefix in sorted(prefixes, key=len, reverse=True):
            note = note.replace(prefix, "")
        shown.append(note)
    return tuple(shown)


@dataclass(frozen=True, kw_only=True)
class BundleScore:
    """How one bundle did on a tree, and on every resample of its scans; the split is the side that was chosen."""

    bundle: NamedBundle
    score: SplitScore

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"bundle": self.bundle.name, "recipe": self.bundle.fields["recipe"], **self.score.card.as_dict()}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Some bundles on the same scans.

    Attributes:
        tree: the scans.
        bundles: in the order they were asked for.
        differences: of every bundle but the first: what it reaches less what the first reaches.
        seed: of the resamples.
        set_aside: scans that could not be read; their nodules count as missed.
        notes: what should be said aloud of the scans and the bundles, without folders.
    """

    tree: Tree
    bundles: tuple[BundleScore, ...]
    differences: tuple[Mapping[compare.Statistic, compare.Difference], ...]
    seed: int
    set_aside: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "data": self.tree.words,
            "tree": self.tree.name,
            "split": self.tree.chosen,
            "scans": len(self.tree.truths),
            "set_aside": list(self.set_aside),
            "notes": list(self.notes),
            "seed": self.seed,
            "resamples": compare.RESAMPLES,
            "band": "95 %, percentiles of resamples of whole scans; both sides of a difference on the same resamples",
            "p_value": f"{compare.P_VALUE}; not corrected for how many there are",
            "bundles": [bundle.as_dict() for bundle in self.bundles],
            "differences": [
                {
                    "first": self.bundles[0].bundle.name,
                    "second": bundle.bundle.name,
                    **{name: difference.as_dict() for name, difference in differences.items()},
                }
                for bundle, differences in zip(self.bundles[1:], self.differences)
            ],
            "series_uids": [truth.series_uid for truth in self.tree.truths],
        }


def evaluation_key(tree: Tree, bundles: Sequence[NamedBundle], seed: int) -> str:
    """Equal evaluations have equal keys."""
    return digest([_series(tree), [bundle.content for bundle in bundles], seed])


def _series(tree: Tree) -> str:
    return digest([truth.series_uid for truth in tree.truths])


@task(name="log_evaluation", task_run_name="log evaluation", cache_policy=NO_CACHE)
def log_evaluation(
    evaluation: Evaluation, folder: Path, pipeline: Pipeline, reports: Sequence[WrittenReport] = ()
) -> Path:
    """Write `evaluation.json` and log one row a bundle in `luna-end-to-end`; returns the file's path.

    Args:
        evaluation: what to keep.
        folder: where to.
        pipeline: of this run.
        reports: of each bundle.
    """
    tree = evaluation.tree
    key = evaluation_key(tree, [judged.bundle for judged in evaluation.bundles], evaluation.seed)
    file = folder / "evaluation.json"
    text = json.dumps(evaluation.as_dict(), indent=1, allow_nan=False)
    write_text_atomic(file, text + "\n")
    for place, judged in enumerate(evaluation.bundles):
        bundle, chosen = judged.bundle, tree.chosen
        with tracking.open_run(
            pipeline.home,
            "end-to-end",
            name=f"{bundle.slug} on {tree.name} {chosen}",
            pipeline_id=pipeline.pipeline_id,
            params={
                "bundle": bundle.name,
                **{member: bundle.fields[member] for member in registry.BUNDLE_MEMBERS},
                "recipe": bundle.fields["recipe"],
                "scans": f"{tree.name} {chosen} {_series(tree)}",
                "seed": str(evaluation.seed),
                "origin": pipeline.origin,
            },
            tags={"luna.origin": pipeline.origin, "luna.evaluation": key},
        ) as run:
            log_score(run, judged.score, chosen)
            run.log_text(text, "evaluation.json")
            for report in reports[place : place + 1]:
                run.log_files(report.folder, chosen)
                run.log_tag(tracking.RUN_NOTE, report.markdown)
    return file
