"""How do a data set, an evaluation and a whole run read as Markdown?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lungml.candidacy import Origin, kind
from lungml.gate import Decision
from lungml.luna import SPLITS
from lungml.recipes.data import PreparedScan
from lungml.score import COLUMNS
from lungml.wording import edges, part_of, rate, signed
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
        lines.append(f"- {doing}: {count:,} scans kept from before")
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
        verdict = f"becomes @{decision.alias}" if decision.promoted else f"does not become @{decision.alias}"
        lines += [f"- gate: it {verdict}", *(f"    - {reason}" for reason in decision.reasons)]
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


def summary_page(scores: Sequence[SplitScore], models: Sequence[TrainedModel], pipeline: Pipeline) -> str:
    """Markdown; arguments as of `publish_summary`."""
    links = Links.of(pipeline.home)
    rows = [
        [model.name, str(model.best_epoch), _short(model.val), _short(model.test), links.model(model.stage, model.uri)]
        for model in models
    ]
    lines = [*title("The run", pipeline.origin)]
    lines += table(["model", "best epoch", "validation", "test", "URI"], rows, words=(0, 2, 3, 4))
    for score in scores:
        lines += ["", f"## {SPLIT_NAMES[score.split].capitalize()} scans", "", *_outcomes(score)]
        lines += ["", f"CPM {rate(score.froc.cpm)}, 95 % band {edges(score.froc.cpm_band)}"]
    return "\n".join(ended(lines, links))


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
        return f"{rate(score.froc.cpm)} ({edges(score.froc.cpm_band)})"
    counts = {"found": (table.found, table.nodules), "malignant_flagged": (table.malignant_flagged, table.malignant)}
    return part_of(*counts[name]) if name in counts else rate(score.metrics[name])


def _difference(score: SplitScore, champion: SplitScore, name: str) -> str:
    gap = score.metrics[name] - champion.metrics[name]
    return signed(gap, digits=0 if name in ("found", "malignant_flagged") else 3)


def _outcomes(score: SplitScore) -> list[str]:
    return table(["", *COLUMNS], score.table.rows())


def _short(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {rate(value)}" for name, value in metrics.items())
