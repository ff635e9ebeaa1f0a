"""Is a bundle that was made again what it was?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from lungml.files import write_text_atomic
from lungml.home import Home
from tasks import promotion, registry, runs, tracking
from tasks.evaluation import SplitScore, log_score
from tasks.finding import slug_of
from tasks.lineage import BundleLineage, bundle_lineage
from tasks.packing import member_file
from tasks.pipeline import Pipeline
from tasks.reproducible import Recorded

Value = float | str | None
PASSING = ("system/", "samples_per_s")  # how metrics begin that no two runs share
REPRODUCES = "luna.reproduces"  # tag of a run and of a bundle's version: which one was made again


@dataclass(frozen=True, kw_only=True)
class ComparedStage:
    """What one stage left then and now.

    Attributes:
        name: of the stage: segmentation, nodule, nodule 2, ..., bundle, val, test.
        then, now: what -> metric, checksum or setting; None where there is none.
    """

    name: str
    then: Mapping[str, Value]
    now: Mapping[str, Value]

    @property
    def different(self) -> tuple[str, ...]:
        """What is not the same to the last bit; not a number equals itself."""
        names = dict.fromkeys((*self.then, *self.now))
        return tuple(name for name in names if not _same(self.then.get(name), self.now.get(name)))


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A bundle beside the one that was made as it was.

    Attributes:
        uri: of the bundle.
        made: of the new one.
        stages: in the order in which they are run.
        notes: sentences that a reader must know.
    """

    uri: str
    made: str
    stages: tuple[ComparedStage, ...]
    notes: tuple[str, ...] = ()

    @property
    def first_different(self) -> str | None:
        """The first stage that left something else; None where all are the same."""
        return next((stage.name for stage in self.stages if stage.different), None)

    @property
    def equal(self) -> bool:
        """Whether everything is the same."""
        return self.first_different is None

    @property
    def words(self) -> str:
        """The verdict in a line."""
        compared = sum(len(dict.fromkeys((*stage.then, *stage.now))) for stage in self.stages)
        if self.equal:
            return f"{self.made} is {self.uri} made again: all {compared:,} weights, settings and metrics are equal"
        differing = sum(len(stage.different) for stage in self.stages)
        return (
            f"{self.made} is not {self.uri}: {differing:,} of {compared:,} weights, settings and metrics differ, "
            f"first in {self.first_different}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; None for what is not a number."""
        return {
            "bundle": self.uri,
            "made": self.made,
            "equal": self.equal,
            "first_different": self.first_different,
            "notes": list(self.notes),
            "stages": [
                {
                    "name": stage.name,
                    "different": list(stage.different),
                    "then": {name: _plain(value) for name, value in stage.then.items()},
                    "now": {name: _plain(value) for name, value in stage.now.items()},
                }
                for stage in self.stages
            ],
        }


def compare(
    home: Home, recorded: Recorded, made: str, scores: Sequence[SplitScore], notes: Sequence[str]
) -> Reproduction:
    """A bundle and the one that was made again, stage by stage: weights, metrics, settings, scores.

    Args:
        home: where both lie.
        recorded: of the first.
        made: `models:/luna/N` of the second.
        scores: its, on the validation and test scans.
        notes: to be said with the result.
    """
    then, now = recorded.lineage, bundle_lineage(home, made)
    stages = []
    for place, ((member, one), (_, other)) in enumerate(zip(then.members, now.members)):
        number = sum(name == member for name, _ in then.members[: place + 1])
        stages.append(
            ComparedStage(
                name=member if number == 1 else f"{member} {number}",
                then={**_files(then, one.uri), **_lasting(one.run.metrics if one.run else {})},
                now={**_files(now, other.uri), **_lasting(other.run.metrics if other.run else {})},
            )
        )
    stages.append(ComparedStage(name="bundle", then=_settings(then.fields), now=_settings(now.fields)))
    metrics = then.run.metrics if then.run else {}
    for score in scores:
        before = f"{score.split}/"
        stages.append(
            ComparedStage(
                name=str(score.split),
                then={
                    **{name: value for name, value in metrics.items() if name.startswith(before)},
                    **_flat(runs.read_json(home, recorded.run_id, f"{before}scorecard.json"), f"{before}scorecard"),
                },
                now={
                    **{f"{before}{name}": v for name, v in score.metrics.items() if not math.isnan(v)},
                    **_flat(json.loads(json.dumps(score.card.as_dict())), f"{before}scorecard"),
                },
            )
        )
    return Reproduction(uri=recorded.uri, made=made, stages=tuple(stages), notes=tuple(notes))


@task(name="log_reproduction", task_run_name="log reproduction of {result.uri}", cache_policy=NO_CACHE)
def log_reproduction(result: Reproduction, scores: Sequence[SplitScore], pipeline: Pipeline) -> str:
    """Keep the comparison: a row in `luna-end-to-end`, a file under the home's reports, a Prefect artifact.

    The new bundle bears no alias, and a tag that says which one it repeats. Returns the run's id.
    """
    home, text = pipeline.home, json.dumps(result.as_dict(), indent=1, allow_nan=False) + "\n"
    slug = slug_of(result.uri)
    write_text_atomic(home.reports / "reproductions" / slug / "reproduction.json", text)
    tags = {REPRODUCES: result.uri, "luna.reproduced": str(result.equal).lower(), "luna.origin": pipeline.origin}
    promotion.tag_version(home, result.made, {REPRODUCES: result.uri})
    with tracking.open_run(
        home,
        "end-to-end",
        name=f"reproduce {slug}",
        pipeline_id=pipeline.pipeline_id,
        params={"bundle": result.made, "reproduces": result.uri, "equal": result.equal, "origin": pipeline.origin},
        tags=tags,
        sample_every_s=None,
    ) as run:
        for score in scores:
            log_score(run, score, score.split)
        run.log_text(text, "reproduction.json")
    create_markdown_artifact(markdown(result), key="luna-reproduction", description="Is a bundle what it was?")
    return run.run_id


def markdown(result: Reproduction) -> str:
    """The comparison as a page: a row a stage, and what differs."""
    lines = [f"# {result.words}", "", *[f"- {note}" for note in result.notes], ""]
    lines += ["| stage | compared | different |", "| --- | ---: | ---: |"]
    for stage in result.stages:
        lines.append(f"| {stage.name} | {len({*stage.then, *stage.now})} | {len(stage.different)} |")
    return "\n".join(lines) + "\n"


def _files(lineage: BundleLineage, uri: str) -> dict[str, Value]:
    """sha256 of a model's weights and architecture, as its bundle holds them."""
    digests = lineage.fields.get("sha256", {})
    return {f"sha256 of {name}": digests.get(member_file(uri, name)) for name in ("weights.safetensors", "arch.json")}


def _settings(fields: Mapping[str, Any]) -> dict[str, Value]:
    """What of a bundle is no model, flat."""
    given = registry.as_given(registry.plain_bundle(fields))
    return _flat({name: value for name, value in given.items() if name not in registry.BUNDLE_MEMBERS}, "")


def _lasting(metrics: Mapping[str, float]) -> dict[str, Value]:
    return {name: value for name, value in sorted(metrics.items()) if not name.startswith(PASSING)}


def _flat(value: Any, name: str) -> dict[str, Value]:
    """A JSON value as dotted names -> numbers and texts."""
    if isinstance(value, Mapping):
        parts = [_flat(one, f"{name}.{key}" if name else str(key)) for key, one in value.items()]
        return {key: one for part in parts for key, one in part.items()}
    if isinstance(value, list | tuple):
        return {key: one for i, item in enumerate(value) for key, one in _flat(item, f"{name}[{i}]").items()}
    return {name: value if isinstance(value, int | float | str) or value is None else str(value)}


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return one == other


def _plain(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
