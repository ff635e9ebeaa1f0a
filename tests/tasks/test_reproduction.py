"""What is refused before anything is trained, and which differences are seen afterwards."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from lungml.fit import identity_of
from lungml.home import Home
from lungml.recipes.variants import recipe_of
from tasks import promotion, registry, reproducible, reproduction, tracking
from tasks.lineage import BundleLineage, ModelLineage
from tasks.reproducible import (
    Recorded,
    ReproductionError,
    SplitRecord,
    check_code,
    check_settings,
    read_recorded,
    same_data,
)
from tasks.reproduction import ComparedStage, Reproduction, compare, log_reproduction, markdown
from tasks.runs import RunFacts
from tasks.truth import ScanTruth
from tests.lungml.test_evaluation_report import EMPTY
from tests.tasks.test_lineage import trained
from tests.tasks.toy_bundles import toy_bundle, toy_fields
from tests.tasks.toy_made import ASKED, SCANS, SCORES, made_bundle, pipeline_in, toy_scan

COMMIT = "0" * 40
CODE = {"training": "1", "crops": "2"}


def facts(**given: Any) -> RunFacts:
    return RunFacts(
        **{"run_id": "r", "name": "", "params": {}, "tags": {}, "metrics": {}, "data": {}, **given}  # type: ignore[arg-type]
    )


def recorded(*, commit: str = COMMIT, members: Mapping[str, ModelLineage] | None = None, **asked: Any) -> Recorded:
    """A bundle of no home, whose run said all there is to say."""
    lineage = BundleLineage(
        uri="models:/luna/7",
        aliases=(),
        decision="",
        fields={"code": commit},
        run=facts(tags={"env.torch": "2.0.0"}),
        pipeline_id="",
        parameters={},
        code=CODE,
        members=tuple((members or {}).items()),
        tags={},
    )
    data = {
        split: SplitRecord(
            digest=reproducible.digest([scan.digest for scan in SCANS if scan.split == split]),
            scans={scan.series_uid: scan.digest for scan in SCANS if scan.split == split},
            set_aside=(),
        )
        for split in ("train", "val", "test")
    }
    return Recorded(lineage=lineage, run_id="r", parameters={**ASKED, **asked}, data=data)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This code is a clean commit, on a machine of a known kind."""
    monkeypatch.setattr(tracking, "git_commit", lambda: COMMIT)
    monkeypatch.setattr(reproducible, "code_digests", lambda: dict(CODE))
    monkeypatch.setattr(reproducible.machine, "environment", lambda: {"torch": "2.0.0"})


def test_what_is_known_is_enough(home: Home) -> None:
    known = read_recorded(home, made_bundle(home))
    assert known.parameters["seed"] == 4
    assert known.recipe == recipe_of("demo", overrides={"classification.fit.epochs": 2})
    assert known.data["train"].scans == {"9.1": "digest of 9.1", "9.4": "digest of 9.4"}
    assert known.notes == ()
    chosen, aside = same_data(known, SCANS, [])
    assert (chosen, aside) == (list(SCANS), [])


def test_what_came_from_elsewhere_cannot_be_made_again(home: Home) -> None:
    with pytest.raises(ReproductionError, match=r"nothing says which run made it.*train it anew"):
        read_recorded(home, toy_bundle(home))
    with pytest.raises(ReproductionError, match="its run says nothing of its parameters"):
        read_recorded(home, made_bundle(home, seed=1, asked=None))
    asked = {name: value for name, value in ASKED.items() if name not in ("seed", "precision")}
    unsaid = made_bundle(home, seed=2, asked=asked)
    with pytest.raises(ReproductionError, match="says nothing of seed, precision; train it anew"):
        read_recorded(home, unsaid)
    unet = trained(home, "segmentation", "import unet.state", file="unet.state", origin="real")
    published = registry.register_bundle(home, toy_fields(home, origin="phantom", segmentation=unet))
    with pytest.raises(ReproductionError, match=f"segmentation {unet} was imported: weights from elsewhere"):
        read_recorded(home, published)


def test_a_model_that_was_given_to_the_run_is_taken_as_it_is(home: Home) -> None:
    known = read_recorded(home, made_bundle(home, asked={**ASKED, "reuse_models": {"segmentation": ["models:/m-1"]}}))
    assert known.notes == ("models:/m-1 was given to the run, not trained by it: taken as it is, not made again",)


@pytest.mark.usefixtures("here")
def test_equal_code_and_versions_need_no_word() -> None:
    assert check_code(recorded(), any_code=False) == ()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("commit", ["1" * 40, f"{COMMIT}-dirty", ""])
def test_other_code_is_refused_unless_asked_for(commit: str) -> None:
    known = recorded(commit=commit)
    with pytest.raises(ReproductionError, match=r"what decides the results is the same; .* --any-code"):
        check_code(known, any_code=False)
    (note,) = check_code(known, any_code=True)
    assert note.startswith(f"made by code {commit or 'of no known commit'}, this is {COMMIT}")


@pytest.mark.usefixtures("here")
def test_which_code_differs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducible, "code_digests", lambda: {**CODE, "training": "3"})
    with pytest.raises(ReproductionError, match="what decides training differs"):
        check_code(recorded(commit="1" * 40), any_code=False)


@pytest.mark.usefixtures("here")
def test_changed_files_are_other_code_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "git_commit", lambda: f"{COMMIT}-dirty")
    for commit in (COMMIT, f"{COMMIT}-dirty"):
        with pytest.raises(ReproductionError, match="--any-code"):
            check_code(recorded(commit=commit), any_code=False)


@pytest.mark.usefixtures("here")
def test_other_versions_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducible.machine, "environment", lambda: {"torch": "2.1.0", "gpu": "H100"})
    assert check_code(recorded(), any_code=False) == (
        "torch: 2.0.0 then, 2.1.0 now.",
        "gpu: none then, H100 now.",
    )


def test_series_that_came_since_are_left_out() -> None:
    chosen, _ = same_data(recorded(), [toy_scan("9.0", "train"), *SCANS, toy_scan("9.9", "val")], [])
    assert chosen == list(SCANS)


def aside(uid: str, split: str) -> ScanTruth:
    return ScanTruth(
        series_uid=uid,
        path=None,  # type: ignore[arg-type]
        split=split,  # type: ignore[arg-type]
        nodules=(),
        negatives_xyz=None,
        excluded=(),
        findings_xyz=None,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("scans", "said"),
    [
        (SCANS[1:], r"other data in train: 1 gone or of another split \(such as 9.1\)"),
        ((*SCANS[:3], toy_scan("9.3", "test", "other")), r"in test: 1 changed \(such as 9.3\).*the code that prepared"),
        ((SCANS[0], toy_scan("9.4", "val"), *SCANS[2:]), r"in train: 1 gone or of another split \(such as 9.4\)"),
        ((SCANS[1], SCANS[0], *SCANS[2:]), "the scans of train come in another order"),
    ],
)
def test_other_data_are_refused_by_name(scans: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ReproductionError, match=said):
        same_data(recorded(), scans, [])


def test_a_scan_that_could_not_be_read_must_still_be_one() -> None:
    known = recorded()
    known = replace(known, data={**known.data, "test": replace(known.data["test"], set_aside=("9.5",))})
    one = aside("9.5", "test")
    assert same_data(known, SCANS, [one, aside("9.8", "test")]) == (list(SCANS), [one])
    with pytest.raises(ReproductionError, match=r"in test: 9.5 could be read then or now only"):
        same_data(known, SCANS, [])
    with pytest.raises(ReproductionError, match=r"in test: 1 could not be read then \(such as 9.5\)"):
        same_data(known, [*SCANS, toy_scan("9.5", "test")], [])


def test_other_settings_than_the_recipes_are_refused() -> None:
    settings = identity_of(recipe_of("demo", overrides=ASKED["overrides"]).classification)

    def known(**asked: Any) -> Recorded:
        run = facts(tags={"luna.stage": "classification"}, params={**settings, "recipe": "demo", "seed": "0"})
        return recorded(members={"nodule": ModelLineage(uri="models:/m-5", run=run)}, **asked)

    check_settings(known())
    with pytest.raises(
        ReproductionError, match=r"its nodule model was trained with fit.epochs 2, the recipe demo here"
    ):
        check_settings(known(overrides=None))
    check_settings(known(overrides=None, reuse_models={"classification": ["models:/m-5"]}))  # by another run
    with pytest.raises(ReproductionError, match="its recipe cannot be had: unknown recipe 'lost'"):
        check_settings(known(recipe="lost"))


def test_a_bit_is_a_difference_and_nan_is_none() -> None:
    then = {"auc": 0.1 + 0.2, "f1": math.nan, "gone": 1.0, "sha256": "a", "none": None}
    now = {"auc": 0.3, "f1": math.nan, "sha256": "a", "none": None, "new": 2.0}
    stage = ComparedStage(name="nodule", then=then, now=now)
    assert stage.different == ("auc", "gone", "new")
    same = ComparedStage(name="segmentation", then={"f1": math.nan}, now={"f1": math.nan})
    result = Reproduction(uri="models:/luna/7", made="models:/luna/8", stages=(same, stage), notes=("so",))
    assert (result.equal, result.first_different) == (False, "nodule")
    assert result.words.endswith("3 of 7 weights, settings and metrics differ, first in nodule")
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["stages"][1]["different"] == ["auc", "gone", "new"]
    assert "| nodule | 6 | 3 |" in markdown(result)
    assert replace(result, stages=(same,)).equal


def test_a_bundle_is_equal_to_one_of_equal_weights_and_scores(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    monkeypatch.setattr(reproduction, "create_markdown_artifact", lambda page, **_: pages.append(page))
    uri, twin = made_bundle(home, seed=5), made_bundle(home, seed=5)
    assert uri != twin  # other models
    result = compare(home, read_recorded(home, uri), twin, SCORES, ["a note"])
    assert [stage.name for stage in result.stages] == ["segmentation", "nodule", "malignancy", "bundle", "val", "test"]
    assert result.equal
    assert all(value for stage in result.stages[:3] for value in stage.then.values())
    assert "test/cpm" in result.stages[-1].then
    assert "test/scorecard.by_diameter[0].sensitivity" in result.stages[-1].then

    run_id = log_reproduction.fn(result, SCORES, pipeline_in(home, "flow9"))
    assert pages == [markdown(result)]
    kept = home.reports / "reproductions" / "luna-1" / "reproduction.json"
    assert json.loads(kept.read_text())["equal"] is True
    run = tracking.client_of(home).get_run(run_id)
    assert (run.info.run_name, run.data.tags["luna.reproduces"], run.data.params["equal"]) == (
        "reproduce luna-1", uri, "True",
    )  # fmt: skip
    assert promotion.alias_of(home, "demo") is None


def test_the_first_stage_that_differs_is_named(home: Home) -> None:
    uri = made_bundle(home, seed=5)
    known = read_recorded(home, uri)
    assert compare(home, known, made_bundle(home, seed=6), SCORES, ()).first_different == "segmentation"
    fields = registry.as_given(registry.read_bundle(home, uri))
    moved = registry.register_bundle(home, {**fields, "nodule_threshold": 0.4})
    result = compare(home, known, moved, SCORES, ())
    assert (result.first_different, result.stages[3].different) == ("bundle", ("nodule_threshold",))
    other = (SCORES[0], replace(SCORES[1], card=EMPTY))
    assert compare(home, known, uri, other, ()).first_different == "test"
    assert reproduction.REPRODUCES not in promotion.list_bundles(home)[0].fields
