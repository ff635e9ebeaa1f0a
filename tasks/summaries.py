"""What did a stage of the pipeline do, and is it better than what is in use? One page each in Prefect's UI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from lungml.candidacy import Origin
from lungml.errors import one_line
from lungml.gate import Decision
from lungml.recipes.data import PreparedScan
from lungml.wording import rate
from tasks.evaluation import SplitScore
from tasks.model_page import model_page
from tasks.pipeline import Pipeline, TrainedModel
from tasks.summary_pages import evaluation_page, prepare_page, summary_page
from tasks.truth import ScanTruth


@task(name="summarize_prepare", task_run_name="summarize prepare", cache_policy=NO_CACHE)
def summarize_prepare(
    scans: Sequence[PreparedScan], set_aside: Sequence[ScanTruth], kept: Mapping[str, int], origin: Origin
) -> None:
    """Show what a data set became: scans and nodules of each split, what was kept, and what was set aside and why.

    Args:
        scans: that are ready.
        set_aside: that cannot be read, with their reasons.
        kept: what was done -> how many scans had it done already, as `flows.progress.gather` counts.
        origin: of the scans.
    """
    _show(
        "luna-prepare", lambda: prepare_page(scans, set_aside, kept, origin), "Scans, nodules, and what was set aside"
    )


@task(name="summarize_model", task_run_name="summarize {models[0].stage}", cache_policy=NO_CACHE)
def summarize_model(models: Sequence[TrainedModel], pipeline: Pipeline, others: Sequence[TrainedModel] = ()) -> None:
    """Show how the models of one stage did beside those of the bundle in use, with links to MLflow.

    Args:
        models: of one stage, one or an ensemble, that go on.
        pipeline: of this run.
        others: that were trained as well and not kept.
    """
    stage = models[0].stage
    _show(f"luna-{stage}", lambda: model_page(models, pipeline, others), f"The {stage} models beside those in use")


@task(name="summarize_evaluation", task_run_name="summarize {bundle_uri}", cache_policy=NO_CACHE)
def summarize_evaluation(
    scores: Sequence[SplitScore],
    bundle_uri: str,
    run_id: str,
    pipeline: Pipeline,
    *,
    champion: SplitScore | None = None,
    champion_uri: str | None = None,
    decision: Decision | None = None,
) -> None:
    """Show what a bundle reaches end to end, beside the one in use on the same test scans, and the gate's verdict.

    Args:
        scores: of the bundle, on validation and test scans.
        bundle_uri: of the bundle.
        run_id: of its row in MLflow.
        pipeline: of this run.
        champion: the score, on the same test scans, of the bundle in use; None where none was scored.
        champion_uri: of that one.
        decision: the gate's; None where it was not asked.
    """

    def page() -> str:
        return evaluation_page(scores, bundle_uri, run_id, pipeline, champion, champion_uri, decision)

    _show("luna-evaluate", page, f"{bundle_uri} end to end")


@task(name="publish_summary", task_run_name="summarize the run", cache_policy=NO_CACHE)
def publish_summary(
    scores: Sequence[SplitScore],
    models: Sequence[TrainedModel],
    pipeline: Pipeline,
    bundle_uri: str,
    *,
    decision: Decision | None = None,
    drift: str = "",
) -> None:
    """Show the whole run's result, and say it in a line: what became of its bundle, its models, its tables.

    Args:
        scores: of the bundle, on validation and test scans.
        models: that were trained.
        pipeline: of this run.
        bundle_uri: of the bundle.
        decision: the gate's; None where it was not asked.
        drift: what drifted, in a few words; empty where nobody looked.
    """
    log = get_run_logger()
    log.info(decision.words if decision else f"{bundle_uri} is in use already")  # the run's own log has little else
    for score in scores:
        log.info("%s: CPM %s, %d of %d nodules found", score.split, rate(score.froc.cpm), *_found(score))

    def page() -> str:
        return summary_page(scores, models, pipeline, bundle_uri, decision, drift)

    _show("luna-summary", page, "What became of the bundle, its models and the end-to-end tables")


def _found(score: SplitScore) -> tuple[int, int]:
    return score.table.found, score.table.nodules


def _show(key: str, page: Callable[[], str], description: str) -> None:
    """Publish a page; one that cannot be made, or that Prefect refuses, costs no run that has done its work."""
    try:
        create_markdown_artifact(page(), key=key, description=description)
    except Exception as error:
        get_run_logger().warning("no summary %s: %s: %s", key, type(error).__name__, one_line(str(error)))
