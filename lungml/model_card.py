"""What must somebody know before using a model? Its card: a page of Markdown, without a word about any patient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lungml.recipes.data import Stage

DOES = {
    "segmentation": (
        "Marks pixels of axial chest CT slices that may belong to a lung nodule, from the slice and its neighbours.",
        "Input: (B, 7, H, W) float32, HU clipped to [-1000, 1000], three slices on each side of the judged one. "
        "Output: (B, 1, H, W) logits.",
    ),
    "classification": (
        "Tells lung nodules from other places in a chest CT scan, from a 3D crop around the place.",
        "Input: (B, 1, {crop}) float32, HU clipped to [-1000, 1000]. Output: (B, 2) logits: non-nodule, nodule.",
    ),
    "malignancy": (
        "Tells nodules that radiologists found suspicious of cancer from benign ones, from a 3D crop around each.",
        "Input: (B, 1, {crop}) float32, HU clipped to [-1000, 1000]. Output: (B, 2) logits: benign, malignant.",
    ),
}
LIMITS = {
    "segmentation": (
        "Voxels are taken as they are: other slice spacings than those trained on change what a nodule looks like.",
        "Pixel metrics are of the slices that hold a nodule or, where the setting `judge` is scans, of all slices of "
        "at most `judge_scans` scans of a split; how many false marks a whole scan gets is told end to end.",
    ),
    "classification": (
        "It only judges places that the segmentation offers: what is not offered is missed.",
        "Candidates of other segmentation models look different; retrain or measure again after changing it.",
    ),
    "malignancy": (
        "The truth is the radiologists' impression of a scan, not a pathologist's finding.",
        "It was judged on annotated nodules; among false candidates its probabilities mean little.",
        "Its AUC means nothing without the diameter's beside it.",
    ),
}
ORIGINS = {
    "real": "CT scans of patients (LUNA16, from LIDC-IDRI, or other scans in its layout)",
    "phantom": "**synthetic scans**: the figures below say nothing about patients",
}


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model card tells.

    Attributes:
        name: of the model's run.
        stage: which of the three.
        origin: of the data, "real" or "phantom".
        digests: split -> digest of its data.
        sizes: split -> what is counted (scans, nodules, crops) -> how many.
        recipe: of the training, by name.
        settings: flat names (`fit.epochs`) -> value; None and defaults may be left out.
        best_epoch: whose weights were kept, by the validation metric `selected_by`.
        selected_by: see there.
        metrics: split -> bare metric name -> value; of the kept weights.
        baselines: split -> what it is -> value, such as {"test": {"AUC of the diameter alone": 0.87}}.
        calibration: split -> (expected calibration error, Brier score).
        threshold: from which probability on a yes is counted.
        parameters: how many weights.
        parents: stage -> URI of the models it started from or whose candidates it learned from.
        commit: of the code; empty when unknown.
    """

    name: str
    stage: Stage
    origin: Literal["real", "phantom"]
    digests: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, int]]
    recipe: str
    settings: Mapping[str, Any]
    best_epoch: int
    selected_by: str
    metrics: Mapping[str, Mapping[str, float]]
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    threshold: float = 0.5
    parameters: int | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""

    def __post_init__(self) -> None:
        if self.stage not in DOES:
            raise ValueError(f"unknown stage {self.stage!r}; choose one of {', '.join(DOES)}")
        if self.origin not in ORIGINS:
            raise ValueError(f"unknown origin {self.origin!r}; choose one of {', '.join(ORIGINS)}")


def write_card(card: ModelCard) -> str:
    """The card as Markdown; a metric that is not a number reads "none"."""
    does, shapes = DOES[card.stage]
    crop = str(card.settings.get("model.crop_shape", "D, H, W")).strip("()[]")
    shapes = shapes.replace("{crop}", crop)
    spacing = str(card.settings.get("model.spacing_mm", None))
    if spacing != "None":
        shapes += f" Crops are resampled to {spacing.strip('()[]')} mm (index, row, col)."
    weights = "" if card.parameters is None else f" {card.parameters:,} weights."
    made = [
        f"- recipe: `{card.recipe}`, epoch {card.best_epoch} kept, the best by validation {card.selected_by}",
        f"- code: `{card.commit}`" if card.commit else "- code: of no known commit",
        *(f"- parent ({stage}): `{uri}`" for stage, uri in card.parents.items()),
        f"- data: {ORIGINS[card.origin]}",
    ]
    parts = [
        f"# {card.name}",
        "**Not for clinical use.**" + (" Trained on synthetic scans." if card.origin == "phantom" else ""),
        f"{does}\n\n{shapes}{weights}",
        "## Intended use\n\nResearch on computer-aided reading, as one of the three stages of luna. A person looks at "
        "every result; nothing is decided by it.",
        "## How it was made\n\n" + "\n".join(made),
        _table(
            ["split", *_columns(card.sizes), "digest"],
            [
                [split, *(_count(card.sizes.get(split, {}).get(c)) for c in _columns(card.sizes)), f"`{digest[:12]}`"]
                for split, digest in card.digests.items()
            ],
        ),
        "## How good it is\n\n" + _quality(card),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS[card.stage]),
        "## Settings\n\n" + ", ".join(f"`{name}` {value}" for name, value in card.settings.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _quality(card: ModelCard) -> str:
    names = _columns(card.metrics)
    baselines = _columns(card.baselines)
    rows = []
    for split, metrics in card.metrics.items():
        ece, brier = card.calibration.get(split, (None, None))
        row = [split, *(_value(metrics.get(name)) for name in names)]
        row += [_value(card.baselines.get(split, {}).get(name)) for name in baselines]
        rows.append([*row, _value(ece), _value(brier)] if card.calibration else row)
    head = ["split", *names, *baselines, *(["ECE", "Brier"] if card.calibration else [])]
    told = f"A yes is a probability of at least {card.threshold:.3g}."
    if card.calibration:
        told += (
            " ECE: mean distance of the probability from the share that came true, over ten equal bins;"
            " Brier: mean squared error of the probability. Lower is better for both."
        )
    return f"{_table(head, rows)}\n\n{told}"


def _columns(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All names in a table of tables, in the order in which they come."""
    return list(dict.fromkeys(name for row in table.values() for name in row))


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _value(number: float | None) -> str:
    if number is None:
        return ""
    return "none" if math.isnan(number) else f"{number:.3f}"
