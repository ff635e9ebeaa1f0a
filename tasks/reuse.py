"""Which models take the place of a training, and may they?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from lungml.candidacy import Origin
from lungml.errors import LunaError
from lungml.figures import THRESHOLD
from lungml.home import Home
from lungml.recipes.data import PreparedScan, Stage
from tasks import registry, tracking
from tasks.pipeline import LOGGED, TrainedModel
from tasks.provenance import used_by
from tasks.rounds import TRAININGS
from tasks.runs import facts_of_run


class ReuseError(LunaError):
    """A model cannot take the place of a training; the message is one line."""


def parse_reused(given: Mapping[str, str | Sequence[str]], refresh: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """Stage -> the URIs of the models to use instead of training; several are an ensemble.

    Raises:
        ReuseError: there is no such stage, it is one of those to `refresh`, or something is no model's own URI.
    """
    both = sorted(set(given) & set(refresh))
    if both:
        raise ReuseError(f"{both[0]}: shall be trained again and be given as well; ask for one of the two")
    reused: dict[str, tuple[str, ...]] = {}
    for stage, uris in given.items():
        if stage not in TRAININGS:
            raise ReuseError(
                f"there is no stage {stage!r} whose models could be reused; choose one of {', '.join(TRAININGS)}"
            )
        listed = (uris,) if isinstance(uris, str) else tuple(uris)
        for uri in listed:
            if not uri.startswith("models:/m-"):  # an alias moves on, and what was made from it would not notice
                raise ReuseError(f"{stage}: {uri!r} is no model's own URI; give models:/m-..., as its run shows it")
        if stage == "segmentation" and len(listed) > 1:
            raise ReuseError(f"segmentation: {len(listed)} models are given; a bundle has one U-Net")
        if not listed or len(set(listed)) < len(listed):
            raise ReuseError(f"{stage}: give the URI of a model, or several, each once")
        reused[stage] = listed
    return reused


@task(name="reuse_models", task_run_name="reuse {stage} models", cache_policy=NO_CACHE)
def reuse_models(
    home: Home, stage: Stage, uris: Sequence[str], scans: Sequence[PreparedScan], origin: Origin
) -> list[TrainedModel]:
    """Finished models in the place of a training, with what their own runs say of how good they are.

    Raises:
        TrackingError: a model is not there, or is of another stage.
        ReuseError: a model learned from scans that are to test or choose the new ones, or was chosen on test scans; or
            it learned from scans of another origin.
    """
    tracking.send_spooled(home, tracking.client_of(home))  # what their runs say may wait still
    models = []
    for uri in uris:
        tracking.load_model(home, uri, expect_stage=stage)
        check_origin(home, uri, origin)
        for note in check_new_to(home, stage, uri, scans):
            get_run_logger().warning(note)
        models.append(as_trained(home, stage, uri))
        get_run_logger().info("%s: %s is used as it is", stage, uri)
    return models


def check_origin(home: Home, uri: str, origin: Origin) -> None:
    """See that a model may be in a bundle of this origin: before hours of training beside it, not after.

    Raises:
        ReuseError: it learned from synthetic scans and the others learn from real ones, or the other way round.
    """
    learned = registry.origin_of(home, uri)
    if learned not in (None, origin):
        known, wanted = registry.ORIGINS.get(str(learned), learned), registry.ORIGINS[origin]
        raise ReuseError(f"{uri}: learned from {known} scans; a bundle of {wanted} scans cannot hold it")


def check_new_to(home: Home, stage: Stage, uri: str, scans: Iterable[PreparedScan]) -> list[str]:
    """What a person should know of a model that has shown nothing of what it learned from; else nothing.

    Raises:
        ReuseError: see `reuse_models`.
    """
    sides = {scan.series_uid: scan.split for scan in scans}
    fields = {member: uri if member == registry.MEMBER_OF[stage] else [] for member in registry.BUNDLE_MEMBERS}
    notes = []
    for used in used_by(home, fields):
        for uid, side in sides.items():
            if (side != "train" and uid in used.learned) or (side == "test" and uid in used.chose):
                raise ReuseError(
                    f"{uri}: {used.deed(uid)} {uid} or a scan of that patient, which here is of the {side} scans; "
                    "train anew, or keep the split that it was made with"
                )
        if used.silent:
            notes.append(f"{', '.join(used.silent)}: no run says from which scans; the scores may flatter what uses it")
    return notes


def as_trained(home: Home, stage: Stage, uri: str) -> TrainedModel:
    """A model as its training left it; one that came from elsewhere has no metrics, and 0.5 as its threshold.

    Raises:
        ReuseError: the run that made it is gone.
    """
    model = tracking.client_of(home).get_logged_model(uri.removeprefix("models:/"))
    run = facts_of_run(home, model.source_run_id) if model.source_run_id else None
    if model.source_run_id and run is None:
        raise ReuseError(f"{uri}: its run {model.source_run_id} is gone, and with it how good it is; train anew")
    told = {split: run.scores(split) if run else {} for split in LOGGED}
    if stage != "segmentation":
        told["val"].setdefault("threshold", THRESHOLD)
    return TrainedModel(
        stage=stage,
        name=model.name,
        uri=uri,
        best_epoch=int(run.metrics.get("best_epoch", 0)) if run else 0,
        val=told["val"],
        test=told["test"],
    )
