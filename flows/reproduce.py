"""A registered bundle made once more from what its run recorded, and set beside what it was."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.end_to_end import DEMO_STRIDE, LUNA16_STRIDE
from flows.evaluate import HELD_OUT, find_split, score_split
from flows.prepare import Prepared, prepare
from flows.train import train
from flows.watched import watched
from lungml.data_folders import known_folders
from lungml.home import Home
from tasks.data import make_phantoms
from tasks.finding import NamedBundle
from tasks.pipeline import Pipeline
from tasks.reproducible import Recorded, ReproductionError, check_code, check_settings, read_recorded, same_data
from tasks.reproduction import Reproduction, compare, log_reproduction
from tasks.rounds import TRAININGS, open_round


# One scan at a time: the segmenter already uses every core.
@flow(name="luna", flow_run_name="reproduce {uri}", task_runner=ThreadPoolTaskRunner(max_workers=1))
@watched
def reproduce(
    uri: str,
    luna_dir: str | None = None,
    tables_dir: str | None = None,
    lidc: str | None = None,
    more: str | None = None,
    any_code: bool = False,
) -> Reproduction:
    """Train a bundle's models anew from equal data, settings, seed and code, and compare every weight and score.

    The new bundle is registered without an alias and stands before no gate. What is cut short is gone on with by the
    next call for the same bundle.

    Args:
        uri: `models:/luna/N` or an alias.
        luna_dir, tables_dir: the scans that made it, when they do not lie where the home was last prepared from.
        lidc, more: as of `prepare`, where the bundle was made with them.
        any_code: go on though the code is another one, and say so.

    Raises:
        TrackingError: there is no such bundle.
        ReproductionError: not enough of it is known, or the code or the data are not what made it.
    """
    home = Home.from_env()
    recorded = read_recorded(home, uri)
    notes = check_code(recorded, any_code)
    check_settings(recorded)
    for note in notes:
        get_run_logger().warning(note)
    prepared = _prepare(home, recorded, luna_dir, tables_dir, lidc, more)
    scans, set_aside = same_data(recorded, prepared.scans, prepared.set_aside)
    asked = recorded.parameters
    again = open_round(home, TRAININGS, {"reproduce": recorded.uri})
    pipeline = Pipeline(
        home=home,
        pipeline_id=str(flow_run.id),
        origin=prepared.origin,
        seed=asked["seed"],
        device=asked["device"],
        devices=asked["devices"],
        precision=asked["precision"],
        round=again,
        corrections=prepared.corrections,
    )
    trained = train(scans, recorded.recipe, pipeline, asked.get("reuse_models"))
    bundle = NamedBundle.of(home, trained.bundle_uri)
    scores = [
        score_split(split, scans, find_split(split, scans, bundle, pipeline), set_aside, bundle, pipeline)
        for split in HELD_OUT
    ]
    result = compare(home, recorded, trained.bundle_uri, scores, notes)
    log_reproduction(result, scores, pipeline)
    if again:
        again.close()
    return result


def _prepare(
    home: Home, recorded: Recorded, luna_dir: str | None, tables_dir: str | None, lidc: str | None, more: str | None
) -> Prepared:
    """The scans that made the bundle: drawn again, or from the folder that was given or is known."""
    asked = recorded.parameters
    for option, given, path in (("lidc", asked.get("lidc"), lidc), ("more", asked.get("more"), more)):
        if given and not path:
            raise ReproductionError(f"{recorded.uri}: was made with --{option}; give the same with --{option}")
    folder, tables = (Path(luna_dir) if luna_dir else None), (Path(tables_dir) if tables_dir else None)
    if folder is None and not asked["luna_dir"]:
        folder = make_phantoms.submit(home, scans=asked["phantoms"], seed=asked["seed"]).result()
    elif folder is None:
        known = known_folders(home)
        folder, tables = known.luna_dir, tables or known.tables_dir
    return prepare(
        str(folder),
        str(tables) if tables else None,
        asked["recipe"],
        asked.get("val_stride") or (LUNA16_STRIDE if asked["luna_dir"] else DEMO_STRIDE),
        asked["seed"],
        lidc=lidc,
        more=more,
        masks=asked.get("masks"),
        overrides=asked.get("overrides"),
        corrections=asked.get("corrections") or 0,  # older runs knew of none
    )
