"""How do a data set, an evaluation and a whole run read as Markdown?"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lungml.candidacy import Origin, kind
from lungml.frozen_split import SPLITS
from lungml.gate import Decision
from lungml.recipes.data import PreparedScan, Stage
from lungml.score import COLUMNS
from lungml.wording import BAND, edges, part_of, rate, signed
from tasks.corrections import words_of
from tasks.evaluation import SplitScore
from tasks.links import UNLINKED, Links
from tasks.pipeline import Pipeline, TrainedModel
from tasks.truth import ScanTruth

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test", "all": "all"}
# Of `SplitScore.metrics`, those worth a row, and what they are called.
REACHED = {
    "cpm": "CPM",
    "found": "nodules found",
    "malignant_flagged": "malignant nodules flagged",
    "false_positives_per_scan": "false positives a scan",
    "malignancy_auc": "malignancy AUC",
    "diameter_auc": "AUC of the diameter alone",
    "end_to_end_malignancy_auc": "end-to-end malignancy AUC",
}
# Of a model's metrics, the one to look at first.
HEADLINES: Mapping[Stage, str] = {"segmentation": "candidate_recall", "classification": "auc", "malignancy": "auc"}


def prepare_page(
    scans: Sequence[PreparedScan], set_aside: Sequence[ScanTruth], kept: Mapping[str, int], origin: Origin
) -> str:
    """Markdown; arguments as of `summarize_prepare`."""
    known: Sequence[PreparedScan | ScanTruth] = (*scans, *set_aside)
    rows = []
    for split in SPLITS:
        of_split = [scan for scan in known if scan.split == split]
        nodules = [nodule for scan in of_split for nodule in scan.nodules]
        rows.append(
            [
                len(of_split),
                sum(scan.split == split for scan in set_aside),
                len(nodules),
                sum(nodule.malignant for nodule in nodules),
                sum(len(scan.unrated) for scan in of_split),
            ]
        )
    rows.append([sum(column) for column in zip(*rows)])
    head = ["", "scans", "of them set aside", "nodules", "of them malignant", "nodules without a rating"]
    names = [*(SPLIT_NAMES[split] for split in SPLITS), "all"]
    lines = [*title("Prepared", origin), *table(head, [[name, *map(str, row)] for name, row in zip(names, rows)])]
    lines += ["", "## What was there already", ""]
    for doing, count in kept.items():
        lines.append(f"- {doing}: {f'{count:,} scans kept from before' if count else 'nothing'}")
    if not set_aside:
        return "\n".join([*lines, "", "Every scan reads well."])
    lines += ["", f"## Set aside: {part_of(len(set_aside), len(known))} scans", ""]
    reasons = Counter(_plain_reason(scan) for scan in set_aside)
    first = {_plain_reason(scan): scan.series_uid for scan in reversed(set_aside)}
    cells = [[reason, str(count), f"`{first[reason]}`"] for reason, count in reasons.most_common()]
    lines += table(["reason", "scans", "such as"], cells, words=(0, 2))
    return "\n".join([*lines, "", "Their nodules count as missed. The artifact `quarantine` names them all."])


def evaluation_page(
    scores: Sequence[SplitScore],
    bundle_uri: str,
    run_id: str,
    pipeline: Pipeline,
    champion: SplitScore | None = None,
    champion_uri: str | None = None,
    decision: Decision | None = None,
) -> str:
    """Markdown; arguments as of `summarize_evaluation`."""
    links = Links.of(pipeline.home)
    lines = [*title(f"`{bundle_uri}` end to end", pipeline.origin)]
    lines += [f"- bundle: {links.bundle(bundle_uri)}", f"- MLflow run: {links.run('end-to-end', run_id, run_id)}"]
    if decision:
        lines += [f"- gate: it {decision.verdict}", *(f"    - {reason}" for reason in decision.reasons)]
    shown = {SPLIT_NAMES[score.split]: score for score in scores}
    head = ["", *(f"{name} ({score.table.scans:,} scans)" for name, score in shown.items())]
    head += [f"test, {champion_uri}", "difference"] if champion else []
    rows = []
    for name, words in REACHED.items():
        row = [words, *(_reached(score, name) for score in shown.values())]
        if champion:
            row += [_reached(champion, name), _difference(shown["test"], champion, name)]
        rows.append(row)
    lines += ["", *table(head, rows)]
    if not champion:
        lines += ["", "No other bundle was scored on the same test scans: there is nothing to compare with."]
    for name, score in shown.items():
        lines += ["", f"## {name.capitalize()} scans", "", *_outcomes(score)]
    return "\n".join(ended(lines, links))


def summary_page(
    scores: Sequence[SplitScore],
    models: Sequence[TrainedModel],
    pipeline: Pipeline,
    bundle_uri: str,
    decision: Decision | None = None,
    drift: str = "",
) -> str:
    """Markdown; arguments as of `publish_summary`."""
    links = Links.of(pipeline.home)
    lines = [*title(outcome(bundle_uri, decision), pipeline.origin), f"- bundle: {links.bundle(bundle_uri)}"]
    lines += [f"- {reason}" for reason in decision.reasons] if decision else []
    lines += [f"- drift: {drift}"] if drift else []
    lines += [f"- {words}"] if (words := words_of(pipeline.corrections)) else []
    rows = []
    for model in models:
        name = HEADLINES[model.stage]
        numbers = [rate(metrics[name]) if name in metrics else "" for metrics in (model.val, model.test)]
        rows.append([model.name, str(model.best_epoch), name, *numbers, links.model(model.stage, model.uri)])
    lines += ["", *table(["model", "best epoch", "metric", "validation", "test", "URI"], rows, words=(0, 2, 5))]
    for score in scores:
        lines += ["", f"## {SPLIT_NAMES[score.split].capitalize()} scans", "", *_outcomes(score)]
        lines += ["", f"CPM {rate(score.froc.cpm)}, {BAND} {edges(score.cpm_band)}"]
    lines += ["", "The artifacts `luna-evaluate`, `luna-gate`, `luna-drift` and `luna-<stage>` tell the rest."]
    return "\n".join(ended(lines, links))


def outcome(bundle_uri: str, decision: Decision | None) -> str:
    """What became of a run's bundle, as a heading."""
    if decision is None:  # an equal one was made before
        return f"`{bundle_uri}` is in use already"
    return f"`{bundle_uri}` {decision.verdict}"


def title(what: str, origin: Origin) -> list[str]:
    """A page's first lines: what it is of, on what kind of scans, and what nobody may use it for."""
    return [f"# {what}", "", f"{kind(origin).capitalize()}. **Not for clinical use.**", ""]


def ended(lines: Sequence[str], links: Links) -> list[str]:
    """A page's lines, and why they link to nothing where they do not."""
    return [*lines] if links.base else [*lines, "", f"_{UNLINKED}_"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> list[str]:
    """Lines of a table; the columns that hold `words` stand left, the others right."""
    line = ["---" if column in words else "---:" for column in range(len(head))]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in (head, line, *rows)]


def _plain_reason(scan: ScanTruth) -> str:
    """A reason that equals those of other scans of the same kind: no file, no number."""
    reason = scan.reason.partition(": ")[2] or scan.reason
    reason = re.sub(rf"\S*{re.escape(scan.series_uid)}\S*", "its file", reason)
    return re.sub(r"\d+(\.\d+)*", "…", reason) or "no reason was kept"


def _reached(score: SplitScore, name: str) -> str:
    table = score.table
    if name == "cpm":
        known = math.isfinite(score.cpm_band[0])
        return rate(score.froc.cpm) + (f" ({edges(score.cpm_band)})" if known else "")
    counts = {"found": (table.found, table.nodules), "malignant_flagged": (table.malignant_flagged, table.malignant)}
    return part_of(*counts[name]) if name in counts else rate(score.metrics[name], digits_of(name))


def _difference(score: SplitScore, champion: SplitScore, name: str) -> str:
    gap = score.metrics[name] - champion.metrics[name]
    return signed(gap, digits=0 if name in ("found", "malignant_flagged") else digits_of(name))


def digits_of(metric: str) -> int:
    """Behind the point: a count a scan is no share of one."""
    return 1 if metric.endswith("_per_scan") else 3


def _outcomes(score: SplitScore) -> list[str]:
    return table(["", *COLUMNS], score.table.rows())
