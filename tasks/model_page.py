"""How did the models of a stage do, and how did those in use?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from lungml.errors import one_line
from lungml.recipes.data import Stage
from lungml.wording import rate, signed
from tasks import promotion, registry
from tasks.corrections import corrections_of, words_of
from tasks.gate import to_beat
from tasks.links import Links
from tasks.pipeline import LOGGED, Pipeline, TrainedModel
from tasks.recorded import READ
from tasks.runs import RunFacts, facts_of_model
from tasks.summary_pages import SPLIT_NAMES, digits_of, ended, table, title
from tasks.tracking import TrackingError

THEN = "These are the counts of when it was trained, before this run."
NOT_COMPARED = ("threshold",)  # a setting, not a score: neither more nor less of it is better


def model_page(models: Sequence[TrainedModel], pipeline: Pipeline, others: Sequence[TrainedModel] = ()) -> str:
    """Markdown; arguments as of `summarize_model`."""
    home, stage, links = pipeline.home, models[0].stage, Links.of(pipeline.home)
    runs = {model.uri: facts_of_model(home, model.uri) for model in (*models, *others)}
    lines = [*title(stage.capitalize(), pipeline.origin)]
    rows = []
    for model in (*models, *others):
        facts = runs[model.uri]
        run = links.run(stage, facts.run_id, facts.name) if facts else "its run is gone"
        here = "in this run" if facts and facts.pipeline_id == pipeline.pipeline_id else "before, and kept"
        use = "goes on" if model in models else "is left out"
        rows.append([model.name, use, here, str(model.best_epoch), run, links.model(stage, model.uri)])
    lines += table(["model", "use", "trained", "best epoch", "MLflow run", "URI"], rows, words=(0, 1, 2, 4, 5))
    first = runs[models[0].uri]
    if first and first.data:
        cells = [
            [
                SPLIT_NAMES.get(split, split),
                *(f"{data.sizes.get(name, 0):,}" for name in ("scans", "nodules", "malignant")),
            ]
            for split, data in first.data.items()
        ]
        lines += ["", "## What it learned from, was chosen and tested on", ""]
        lines += table(["", "scans", "nodules", "of them malignant"], cells)
        lines += ["", THEN] if first.pipeline_id != pipeline.pipeline_id else []
    used = words_of(corrections_of(first.metrics)) if first else ""
    lines += ["", f"It learned from {used}."] if used else []
    standing, uri, note = _standing(pipeline, stage)
    for split in ("val", "test"):
        own = {model.name: _scores(model, split) for model in (*models, *others)}
        if not any(own.values()):
            continue
        lines += ["", f"## On the {SPLIT_NAMES[split]} scans", ""]
        lines += _compared(own, [model.name for model in models], [facts.scores(split) for facts in standing], uri)
        lines += ["", _same_scans(split, first, standing)] if standing else []
    lines += ["", note] if note else []
    return "\n".join(ended(lines, links))


def _standing(pipeline: Pipeline, stage: Stage) -> tuple[list[RunFacts], str, str]:
    """The runs of the stage's models in the bundle in use, its URI, and a sentence where there is no such thing."""
    alias = promotion.DEMO if pipeline.origin == "phantom" else promotion.CHAMPION
    uri = to_beat(pipeline.home, pipeline.origin)
    if uri is None:
        return [], "", f"There is no @{alias} yet to compare with."
    try:
        fields = registry.read_bundle(pipeline.home, uri)
    except TrackingError as error:
        return [], uri, f"@{alias} cannot be compared with: {one_line(str(error))}."
    uris = registry.member_uris(fields, registry.MEMBER_OF[stage])
    found = [facts_of_model(pipeline.home, model) for model in uris]
    known = [facts for facts in found if facts and any(facts.scores(split) for split in LOGGED)]
    if len(known) < len(found):
        return [], uri, f"@{alias}, {uri}, has models whose runs do not say how they did."
    return known, uri, ""


def _scores(model: TrainedModel, split: str) -> Mapping[str, float]:
    return {"val": model.val, "test": model.test}[split]


def _compared(
    own: Mapping[str, Mapping[str, float]], kept: Sequence[str], standing: Sequence[Mapping[str, float]], uri: str
) -> list[str]:
    """A row for each metric; columns for the models, or their mean and each of them, those in use and the difference.

    What matters stands left: a page shows the first 700 pixels of a table.
    """
    names = list(dict.fromkeys(name for metrics in own.values() for name in metrics))
    ours = _means([own[name] for name in kept])
    theirs = _means(standing) if standing else {}
    several = len(own) > 1
    mean = f"mean of the {len(kept)} that go on" if len(kept) > 1 else "the one that goes on"
    first = [mean] if several else list(own)
    head = ["metric", *first, *([f"in use: {uri}", "difference"] if standing else []), *(own if several else [])]
    rows = []
    for name in names:
        beside = [_cell(name, theirs), _gap(name, ours, theirs)] if standing else []
        each = [_cell(name, metrics) for metrics in own.values()] if several else []
        rows.append([name, _cell(name, ours), *beside, *each])
    return table(head, rows)


def _means(models: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric that all of some models have."""
    shared = [name for name in models[0] if all(name in metrics for metrics in models)]
    return {name: fmean(metrics[name] for metrics in models) for name in shared}


def _cell(name: str, metrics: Mapping[str, float]) -> str:
    return rate(metrics[name], digits_of(name)) if name in metrics else ""


def _gap(name: str, ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    if name in NOT_COMPARED or name not in ours or name not in theirs:
        return ""
    return signed(ours[name] - theirs[name], digits_of(name))


def _same_scans(split: str, own: RunFacts | None, standing: Sequence[RunFacts]) -> str:
    """Whether the two were judged on the same scans: else the difference says little.

    What their stage reads of the scans counts, where all say it; runs of older versions name all of the data only.
    """
    runs = [facts for facts in (own, *standing) if facts]
    digests = {facts.tags.get(f"{READ}{split}", "") for facts in runs}
    if "" in digests:
        digests = {facts.data[split].digest if split in facts.data else "" for facts in runs}
    if own and len(digests) == 1 and "" not in digests:
        return f"Both were judged on the same {SPLIT_NAMES[split]} scans."
    return f"They were judged on other {SPLIT_NAMES[split]} scans: the difference may be that of the data."
