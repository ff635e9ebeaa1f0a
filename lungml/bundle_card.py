"""What must somebody know before using a bundle? Its card: a page of Markdown, without a word about any patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from lungml import bundle_scores
from lungml.calibration import Method, Probability
from lungml.candidacy import Origin
from lungml.evaluation_notes import LIMITS, LIMITS_OF, NOT_CLINICAL
from lungml.pages import Block, Items, Page, Part, Sheet, Words, to_markdown
from lungml.report_facts import SPLITS
from lungml.scorecard import Scorecard
from lungml.wording import commit

DATA = {
    "real": "CT scans of patients (LUNA16, from LIDC-IDRI, or other scans in its layout)",
    "phantom": "synthetic scans: no figure here says anything about patients",
}
DOES = (
    "Reads a chest CT scan and lists the places that look like lung nodules, each with the probability of being a "
    "nodule and, of those taken for one, the probability that radiologists would find it suspicious of cancer.",
    "A U-Net marks voxels slice by slice, marked voxels are grouped into candidates, one classifier judges each "
    "candidate as nodule or not, another one each nodule as malignant or benign.",
)
USE = (
    "Research on computer-aided reading of chest CT. A person looks at every result; nothing is decided by it.",
    "Not for screening, diagnosis or triage of patients, and not for scans of children, of other parts of the body or "
    "of other modalities: on none of them was it judged.",
)
MORE_LIMITS = (
    "What the segmentation does not mark is missed, whatever the classifiers would have said of it.",
    "The probability of malignancy of a place that is no nodule means little.",
    "Age, sex, ethnicity, smoking and scanner are not known of the scans: how it does on one group of people or on one "
    "machine was not measured. What is known of nodules and slices stands above, by kind.",
)


@dataclass(frozen=True, kw_only=True)
class CardModel:
    """One model of a bundle.

    Attributes:
        member: segmentation, nodule or malignancy.
        uri: of the model.
        run: that made it; empty where nothing says.
        recipe: it was trained by; empty where nothing says.
        seed: of its training; empty where nothing says.
        parents: URIs of the models that it started from or whose candidates it learned from.
    """

    member: str
    uri: str
    run: str = ""
    recipe: str = ""
    seed: str = ""
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BundleCard:
    """What a bundle's card tells.

    Attributes:
        uri: `models:/luna/N`.
        origin: of the scans, "real" or "phantom".
        recipe: by name.
        commit: of the code; empty when unknown.
        models: in the bundle's order.
        digests: split -> digest of its data; empty where nothing says.
        sizes: split -> scans, nodules and malignant ones.
        scores: split -> how well it did; "test" is what counts.
        calibration: the method of each probability, see `lungml.calibration.Calibration.methods`.
        run: the end-to-end run that made and judged it.
        pipeline: the flow run.
        parameters: of the flow run, see `tasks.recorded`.
        environment: what it was made on: name -> value.
        missing: sentences on what nothing says.
        corrections: how many of the readers' corrections were used as what, up to which version; empty where none were.

    Raises:
        ValueError: on an unknown origin or split.
    """

    uri: str
    origin: Origin
    recipe: str
    commit: str
    models: tuple[CardModel, ...]
    digests: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, int]]
    scores: Mapping[str, Scorecard]
    calibration: Mapping[Probability, Method]
    run: str
    pipeline: str
    parameters: Mapping[str, Any]
    environment: Mapping[str, str]
    missing: tuple[str, ...] = ()
    corrections: str = ""

    def __post_init__(self) -> None:
        if self.origin not in get_args(Origin):
            raise ValueError(f"unknown origin {self.origin!r}; choose one of {', '.join(get_args(Origin))}")
        unknown = [split for split in self.scores if split not in SPLITS]
        if unknown:
            raise ValueError(f"unknown split {unknown[0]!r}; choose one of {', '.join(SPLITS)}")


def write_bundle_card(card: BundleCard) -> str:
    """The card as Markdown; a number that is not defined reads "none"."""
    synthetic = " Made of synthetic scans." if card.origin == "phantom" else ""
    return to_markdown(
        Page(
            title=f"luna bundle {card.uri}",
            opening=[Words(text=NOT_CLINICAL + synthetic, kind="warning"), Items(texts=DOES)],
            parts=[
                Part(heading="Intended use", blocks=[Items(texts=USE)]),
                Part(heading="How good it is", blocks=bundle_scores.quality(card.scores)),
                Part(heading="On which nodules", blocks=bundle_scores.kinds(card.scores)),
                Part(
                    heading="What a probability is worth",
                    blocks=bundle_scores.calibration(card.scores, card.calibration),
                ),
                Part(heading="Limits", blocks=[Items(texts=_limits(card))]),
                Part(heading="Data", blocks=_data(card)),
                Part(heading="How it was made", blocks=_made(card)),
                Part(heading="How to use it", blocks=[Items(texts=_use(card))]),
            ],
        )
    )


def shortened(markdown: str, characters: int, whole: str) -> str:
    """As many parts of a card as fit, from the first one on.

    Args:
        markdown: see `write_bundle_card`.
        characters: at most so many.
        whole: a sentence that says where the whole card is; the last line where a part is left out.
    """
    if len(markdown) <= characters:
        return markdown
    first, *parts = markdown.split("\n## ")
    end, kept = f"\n\n{whole}\n", first
    for part in parts:
        longer = f"{kept.rstrip()}\n\n## {part}"
        if len(longer.rstrip()) + len(end) > characters:
            break
        kept = longer
    return kept.rstrip()[: characters - len(end)] + end


def _limits(card: BundleCard) -> list[str]:
    synthetic = [f"It learned from {DATA['phantom']}."] if card.origin == "phantom" else []
    return [*synthetic, *(LIMITS_OF[split] for split in card.scores if split in LIMITS_OF), *LIMITS, *MORE_LIMITS]


def _data(card: BundleCard) -> list[Block]:
    blocks: list[Block] = [Words(text=f"{DATA[card.origin][0].upper()}{DATA[card.origin][1:]}.")]
    counts = ("scans", "nodules", "malignant")
    rows = [
        [split, *(f"{card.sizes[split][what]:,}" if what in card.sizes.get(split, {}) else "" for what in counts), mark]
        for split, mark in ((split, digest[:12]) for split, digest in card.digests.items())
    ]
    if rows:
        head = ["split", *counts, "digest"]
        blocks.append(Sheet(caption="What it was made and judged on", head=head, rows=rows, words=frozenset({4})))
    else:
        blocks.append(Words(text="Its run says nothing of its data."))
    if card.corrections:
        blocks.append(Words(text=f"It learned from {card.corrections}."))
    return blocks


def _made(card: BundleCard) -> list[Block]:
    rows = [
        [
            model.member,
            model.uri,
            model.recipe or "unknown",
            model.seed or "unknown",
            ", ".join(model.parents) or "none",
        ]
        for model in card.models
    ]
    environment = ", ".join(f"{name} {value}" for name, value in card.environment.items())
    parameters = ", ".join(f"{name} {value}" for name, value in card.parameters.items() if value not in (None, {}, []))
    return [
        Sheet(
            caption="Models",
            head=["", "model", "recipe", "seed", "learned after"],
            rows=rows,
            words=frozenset({1, 2, 4}),
        ),
        Items(
            texts=[
                f"recipe {card.recipe}, code {commit(card.commit, 'of no known commit')}",
                f"end-to-end run {card.run or 'unknown'}, pipeline {card.pipeline or 'unknown'}",
                f"parameters: {parameters or 'unknown'}",
                f"environment: {environment or 'unknown'}",
                *card.missing,
            ]
        ),
    ]


def _use(card: BundleCard) -> list[str]:
    return [
        f"Read a scan: luna read SCAN --bundle {card.uri}",
        f"Load it without luna's commands: mlflow.pyfunc.load_model('{card.uri}'), or serve that with mlflow models "
        "serve --env-manager local; see docs/serving.md",
        f"Where all of it comes from: luna model lineage {card.uri}",
        f"Make it again and compare: luna model reproduce {card.uri}",
        "manifest.json beside this card has the sha256 of every file, the digests, parameters and scores.",
    ]
