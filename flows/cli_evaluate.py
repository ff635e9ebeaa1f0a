"""The `luna evaluate` command: how good are some bundles on these scans, and how good is a submission to LUNA16?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.show_scores import show_evaluation, show_submission
from flows.terminal import MAX_SEED, out, print_note, start
from lungml.home import Home

if TYPE_CHECKING:
    from lungml.data_folders import DataFolders
    from tasks.contenders import LooseModels

SPLITS: dict[str, Literal["all", "val", "test", "train"]] = {
    "validation": "val",
    "val": "val",
    "test": "test",
    "train": "train",
    "all": "all",
}
BUNDLE_HELP = "models:/luna/N or models:/luna@alias; else @champion, or @demo where there is none"
LOOSE_HELP = "a model that no bundle holds, with the other two; may be given more than once: probabilities are averaged"
MEMBERS = ("segmentation", "classification", "malignancy")
LOOSE = "Models that no bundle holds"
SUBMISSION = "A submission to LUNA16"
Loose = Annotated[list[str] | None, typer.Option(metavar="URI", help=LOOSE_HELP, rich_help_panel=LOOSE)]


def evaluate(
    bundles: Annotated[list[str] | None, typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP)] = None,
    luna_dir: Annotated[
        Path | None, typer.Option(help="folder of **/<series_uid>.mhd; else where scans were last prepared from")
    ] = None,
    tables: Annotated[Path | None, typer.Option(help="folder of the csv tables, when they lie elsewhere")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="validation, test or train: as split.csv has them, or all (scans that no bundle learned from); "
            "all when --luna-dir is given, else validation"
        ),
    ] = None,
    bundle: Annotated[
        list[str] | None, typer.Option("--bundle", metavar="BUNDLE", help="as BUNDLE; may be given more than once")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of the resamples")] = 0,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="folder of evaluation.json; else under reports/")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print the figures as one JSON object, and only that")
    ] = False,
    segmentation: Loose = None,
    classification: Loose = None,
    malignancy: Loose = None,
    grouping: Annotated[
        str | None, typer.Option(help="how they become candidates; else as in the best recipe", rich_help_panel=LOOSE)
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="score these marks instead; the tables' folder holds annotations.csv, annotations_excluded.csv and "
            "seriesuids.csv",
            rich_help_panel=SUBMISSION,
        ),
    ] = None,
    bootstraps: Annotated[
        int | None, typer.Option(min=0, help="for the band; 1000 when not given", rich_help_panel=SUBMISSION)
    ] = None,
    ignore_unknown: Annotated[
        bool,
        typer.Option(
            "--ignore-unknown", help="leave out marks in series that are not listed", rich_help_panel=SUBMISSION
        ),
    ] = False,
) -> None:
    """Find and judge the nodules of scans with each bundle, and compare further bundles with the first.

    With --submission, score a csv file of marks by LUNA16's own rules: nothing is read but tables.
    """
    loose = dict(zip(MEMBERS, (segmentation, classification, malignancy)))
    named = [*(bundles or []), *(bundle or [])]
    if submission:
        _refuse(
            "a submission is scored without models and scans",
            {"BUNDLE": named, "--split": split, "--out": out_dir, "--grouping": grouping}
            | {f"--{member}": uris for member, uris in loose.items()},
        )
        _score(submission, luna_dir, tables, ignore_unknown, bootstraps, seed, as_json)
        return
    _refuse(
        "this belongs to --submission",
        {"--bootstraps": bootstraps is not None, "--ignore-unknown": ignore_unknown},
    )
    chosen = split or ("all" if luna_dir else "validation")
    if chosen not in SPLITS:
        raise typer.BadParameter(f"--split {chosen!r} is none of {', '.join(SPLITS)}")
    _check_loose(loose, grouping)
    home = start()
    from flows.evaluate import evaluate_bundles
    from flows.settings import tell_the_story
    from flows.temporary_server import ready_server
    from lungml.devices import resolve_device
    from tasks.comparison import check_unseen, read_tree
    from tasks.contenders import contenders

    tell_the_story()
    # What a person can get wrong is said before anything starts.
    resolve_device(device)
    folders = _folders(luna_dir, tables, home)
    _, tree = read_tree(folders.luna_dir, folders.tables_dir, SPLITS[chosen], home)
    models = _loose_models(loose, grouping)
    if not named and not models:
        named = [_default(home)]
    for contender in contenders(home, named, models):
        check_unseen(tree, contender, home)
        if contender.name not in named:
            print_note(
                f"{contender.name} is " + ", ".join(f"{name} {' '.join(uris or [])}" for name, uris in loose.items())
            )
    ready_server()
    evaluation, file = evaluate_bundles(
        named,
        str(folders.luna_dir),
        str(folders.tables_dir) if folders.tables_dir else None,
        SPLITS[chosen],
        device,
        seed,
        str(out_dir.absolute()) if out_dir else None,
        models,
    )
    if as_json:
        print(json.dumps(evaluation.as_dict(), indent=1, allow_nan=False))
    else:
        show_evaluation(evaluation, file, out)


def _score(
    submission: Path,
    luna_dir: Path | None,
    tables: Path | None,
    ignore_unknown: bool,
    bootstraps: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Score a submission; neither Prefect nor MLflow nor PyTorch is needed, and none is imported."""
    from lungml.submission import BOOTSTRAPS, score_submission

    folders = _folders(luna_dir, tables, None)
    score = score_submission(
        submission,
        folders.tables_dir or folders.luna_dir,
        ignore_unknown=ignore_unknown,
        bootstraps=BOOTSTRAPS if bootstraps is None else bootstraps,
        seed=seed,
    )
    for note in score.notes:
        print_note(note)
    if as_json:
        print(json.dumps(score.as_dict(), indent=1, allow_nan=False))
    else:
        show_submission(score, out)


def _folders(luna_dir: Path | None, tables: Path | None, home: Home | None) -> DataFolders:
    """The folders that were given, else those that the home was last prepared from."""
    from lungml.data_folders import DataFolders, known_folders

    if luna_dir is None and (tables is None or home is not None):
        known = known_folders(home or Home.from_env())
        return DataFolders(luna_dir=known.luna_dir, tables_dir=tables.absolute() if tables else known.tables_dir)
    tables_dir = tables.absolute() if tables else None
    return DataFolders(luna_dir=(luna_dir or tables or Path()).absolute(), tables_dir=tables_dir)


def _check_loose(loose: dict[str, list[str] | None], grouping: str | None) -> None:
    missing = [f"--{member}" for member, uris in loose.items() if not uris]
    if missing and len(missing) < len(loose):
        raise typer.BadParameter(f"{', '.join(missing)} is missing: loose models are judged three together")
    if grouping and missing:
        raise typer.BadParameter("--grouping is for loose models; a bundle has its own")


def _loose_models(loose: dict[str, list[str] | None], grouping: str | None) -> LooseModels | None:
    from tasks.contenders import LooseModels

    if not all(loose.values()):
        return None
    return LooseModels(**{name: tuple(uris or ()) for name, uris in loose.items()}, grouping=grouping)  # type: ignore[arg-type]


def _default(home: Home) -> str:
    from tasks.contenders import default_bundle

    uri, alias = default_bundle(home)
    print_note(f"no bundle was named: {uri} is judged, which is @{alias}")
    return uri


def _refuse(why: str, given: dict[str, Any]) -> None:
    names: Sequence[str] = [name for name, value in given.items() if value]
    if names:
        raise typer.BadParameter(f"{why}: leave out {', '.join(names)}")
