"""The `luna` command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.markup import escape

from flows import cli_corrections, cli_data, cli_evaluate, cli_model, cli_read, cli_show
from flows.failures import in_words
from flows.settings import tell_the_story
from flows.terminal import MAX_SEED, err, out, start

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Chest CT scans to a ranked list of lung nodules. Not for clinical use.",
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_model.app, name="model")
app.add_typer(cli_corrections.app, name="corrections")


RECIPE_HELP = "best, report (the project report's, constant by constant) or demo (best cut to minutes)"
BUDGET_HELP = "factor of both samples per epoch and epochs of every model"
SET_HELP = "change one setting of the recipe, such as segmentation.loss=report; may be given more than once"
DEVICES_HELP = "GPUs, or processes on a CPU, that share each batch in training"
PRECISION_HELP = "of training: fp32 or bf16"
REFRESH_HELP = (
    "do a stage again though it is finished: prepare, segmentation, classification, malignancy or evaluate; may be "
    "given more than once. After a run that was cut short, the same command goes on where that one stopped"
)
REUSE_HELP = "use a model instead of training that stage; by its own URI, models:/m-..., and more than once if need be"
FOLDS_HELP = "cross-validate instead: 10 (LUNA16's own subsets), or some of them such as 0,3; 0,3/5 are two of five"
CORRECTIONS_HELP = "use readers' corrections up to this version on training scans; 0 for none, else all"
LIMIT_HELP = "hours that the training of one model may take"
Budget = Annotated[float, typer.Option(help=BUDGET_HELP)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="SETTING=VALUE", help=SET_HELP)]
Devices = Annotated[int, typer.Option(min=1, help=DEVICES_HELP)]
PrecisionOption = Annotated[str, typer.Option("--precision", help=PRECISION_HELP)]
Refresh = Annotated[list[str] | None, typer.Option("--refresh", metavar="STAGE", help=REFRESH_HELP)]
Reuse = Annotated[list[str] | None, typer.Option("--reuse", metavar="STAGE=URI", help=REUSE_HELP)]
Corrections = Annotated[int | None, typer.Option(metavar="VERSION", min=0, help=CORRECTIONS_HELP)]
TimeLimit = Annotated[float | None, typer.Option("--time-limit", min=0.01, help=LIMIT_HELP)]


@app.command()
def demo(
    scans: Annotated[int, typer.Option(help="synthetic scans to draw")] = 36,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of everything random")] = 0,
    val_stride: Annotated[int, typer.Option(help="every n-th series validates, the one after it tests")] = 5,
    fresh: Annotated[bool, typer.Option("--fresh", help="train again even where an equal model is finished")] = False,
    refresh: Refresh = None,
) -> None:
    """Synthetic scans -> three trained models -> an evaluated table, in minutes on two cores."""
    _run_pipeline(
        recipe="demo",
        val_stride=val_stride,
        seed=seed,
        phantoms=scans,
        fresh=fresh,
        refresh=refresh or [],
        corrections=0,
    )


@app.command()
def run(
    luna_dir: Annotated[Path, typer.Option(help="folder that holds **/<series_uid>.mhd")],
    tables: Annotated[Path | None, typer.Option(help="folder of the csv tables, when they lie elsewhere")] = None,
    recipe: Annotated[str, typer.Option(help=RECIPE_HELP)] = "best",
    val_stride: Annotated[int, typer.Option(help="every n-th series validates, the one after it tests")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of everything random")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="train again even where an equal model is finished")] = False,
    lidc: Annotated[Path | None, typer.Option(help=cli_data.LIDC_HELP)] = None,
    more: Annotated[Path | None, typer.Option(help=cli_data.MORE_HELP)] = None,
    masks: Annotated[str | None, typer.Option(help=cli_data.MASKS_HELP)] = None,
    budget: Budget = 1.0,
    overrides: Overrides = None,
    devices: Devices = 1,
    precision: PrecisionOption = "fp32",
    time_limit: TimeLimit = None,
    corrections: Corrections = None,
    folds: Annotated[str | None, typer.Option(help=FOLDS_HELP)] = None,
    refresh: Refresh = None,
    reuse: Reuse = None,
) -> None:
    """The whole pipeline on a LUNA16 tree; in this process, unless a Prefect server answers at the configured URL."""
    from lungml.recipes import RecipeError
    from lungml.recipes.variants import parse_overrides

    whole: partial[None]
    if folds is None:
        whole = partial(
            _run_pipeline,
            val_stride=val_stride,
            refresh=refresh or [],
            reuse_models=_reused(reuse or []),
            corrections=corrections,
        )
    elif refresh or reuse:
        raise RecipeError("--folds trains every fold's own models: --refresh and --reuse are not for it; --fresh is")
    elif corrections:
        raise RecipeError("--folds trains on what it tests elsewhere: readers' corrections are not for it")
    else:
        whole = partial(_cross_validate, folds)
    whole(
        luna_dir=str(luna_dir.absolute()),
        tables_dir=str(tables.absolute()) if tables else None,
        recipe=recipe,
        seed=seed,
        device=device,
        fresh=fresh,
        lidc=str(lidc.absolute()) if lidc else None,
        more=str(more.absolute()) if more else None,
        masks=cli_data.mask_rule(masks),
        budget=budget,
        overrides=parse_overrides(overrides or []),
        devices=devices,
        precision=precision,
        time_limit_h=time_limit,
    )


@app.command()
def train(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="segmentation, classification or malignancy")],
    luna_dir: Annotated[Path, typer.Option(help="folder that holds **/<series_uid>.mhd")],
    tables: Annotated[Path | None, typer.Option(help="folder of the csv tables, when they lie elsewhere")] = None,
    recipe: Annotated[str, typer.Option(help=RECIPE_HELP)] = "best",
    budget: Budget = 1.0,
    overrides: Overrides = None,
    segmentation: Annotated[str | None, typer.Option(help="U-Net whose candidates classification learns from")] = None,
    nodule: Annotated[str | None, typer.Option(help="nodule classifier that malignancy is fine-tuned from")] = None,
    val_stride: Annotated[int, typer.Option(help="every n-th series validates, the one after it tests")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of everything random")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    devices: Devices = 1,
    precision: PrecisionOption = "fp32",
    fresh: Annotated[bool, typer.Option("--fresh", help="train again even where an equal model is finished")] = False,
    time_limit: TimeLimit = None,
    corrections: Corrections = None,
) -> None:
    """One of the three models, from given ones where it needs any; prints its URI and its metrics."""
    from lungml.recipes import RecipeError
    from lungml.recipes.data import Stage
    from lungml.recipes.variants import parse_overrides

    if stage not in get_args(Stage):
        raise RecipeError(f"there is no stage {stage!r}; choose one of {', '.join(get_args(Stage))}")
    parameters: dict[str, Any] = {
        "recipe": recipe,
        "budget": budget,
        "overrides": parse_overrides(overrides or []),
        "device": device,
        "devices": devices,
        "precision": precision,
    }
    home = start()
    from flows.show import show_models
    from flows.temporary_server import ready_server
    from flows.train import train_stage

    tell_the_story()
    check_training(**parameters)
    ready_server()
    trained = train_stage(
        stage=stage,
        luna_dir=str(luna_dir.absolute()),
        tables_dir=str(tables.absolute()) if tables else None,
        val_stride=val_stride,
        seed=seed,
        segmentation=segmentation,
        nodule=nodule,
        fresh=fresh,
        time_limit_h=time_limit,
        corrections=corrections,
        **parameters,
    )
    show_models(trained.models, trained.origin, home, out)


app.command()(cli_evaluate.evaluate)
app.command()(cli_read.read)
app.command()(cli_show.show)


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(help="of the Prefect server and UI")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="of the MLflow UI")] = 5000,
) -> None:
    """Start the Prefect server, work pool, worker and MLflow UI, with the flows deployed, until Ctrl-C.

    A server that PREFECT_API_URL names, or MLFLOW_TRACKING_URI, is used instead, where it answers.
    """
    from flows.up import up as run_services

    raise typer.Exit(run_services(start(flows=False), prefect_port=prefect_port, mlflow_port=mlflow_port))


@app.command()
def status() -> None:
    """Servers, workers, the next and the last runs, models in use and room on the disk; works without a server."""
    home = start(flows=False)
    from flows.status import show_status

    show_status(home, out)


STOPPED, TERMINATED = 130, 143  # 128 + SIGINT, + SIGTERM, as shells have it


def main() -> None:
    """Run the command; an error that a user can mend is one line and exit status 1."""
    # As an exit, so that what this process started, such as Prefect's temporary server, is ended with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer makes an exit of Ctrl-C.
        if isinstance(end, SystemExit) and end.code != STOPPED:
            raise
        err.print("stopped")
        sys.exit(STOPPED)
    except Exception as error:
        words = in_words(error)
        if words is None:
            raise
        err.print(f"[red]error:[/] {escape(words)}", soft_wrap=True)
        sys.exit(1)


def check_training(
    recipe: str,
    budget: float = 1.0,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    devices: int = 1,
    precision: str = "fp32",
) -> None:
    """Refuse what a person can get wrong before anything starts."""
    from lungml.devices import Hardware
    from lungml.recipes.variants import recipe_of
    from tasks.gpus import check_training as check

    check(
        recipe_of(recipe, budget=budget, overrides=overrides),
        Hardware(device=device, count=devices, precision=precision),  # type: ignore[arg-type]
    )


CHECKED = ("recipe", "budget", "overrides", "device", "devices", "precision")


def _reused(given: list[str]) -> dict[str, list[str]]:
    """Stage -> URIs of `STAGE=URI` texts."""
    reused: dict[str, list[str]] = {}
    for text in given:
        stage, _, uri = text.partition("=")
        reused.setdefault(stage, []).append(uri)
    return reused


def _cross_validate(folds: str, **parameters: Any) -> None:
    home = start()
    from flows.folds import cross_validate
    from flows.show import show_folds
    from flows.temporary_server import ready_server
    from lungml.folds import parse_folds, read_folds

    tell_the_story()
    check_training(**{name: parameters[name] for name in CHECKED})
    count, chosen = parse_folds(folds)
    tables = Path(parameters["tables_dir"]) if parameters["tables_dir"] else None
    parts = read_folds(Path(parameters["luna_dir"]), tables, count)
    for fold in chosen:
        parts.split(fold)
    ready_server()
    show_folds(cross_validate(folds=count, only=list(chosen), **parameters), home, out)


def _run_pipeline(**parameters: Any) -> None:
    home = start()
    from flows.end_to_end import end_to_end
    from flows.show import show_summary
    from flows.temporary_server import ready_server
    from tasks.reuse import parse_reused
    from tasks.rounds import parse_stages
    from tasks.truth import read_truths

    tell_the_story()
    check_training(**{name: parameters[name] for name in CHECKED if name in parameters})
    parse_stages(parameters.get("refresh", ()))
    parse_reused(parameters.get("reuse_models", {}), parameters.get("refresh", ()))
    if parameters.get("luna_dir") and not parameters.get("lidc"):  # else a table may still have to be made
        tables = Path(parameters["tables_dir"]) if parameters["tables_dir"] else None
        stride = parameters["val_stride"]
        read_truths(Path(parameters["luna_dir"]), tables, stride, home, for_training=True)
    ready_server()
    show_summary(end_to_end(**parameters), home, out)
