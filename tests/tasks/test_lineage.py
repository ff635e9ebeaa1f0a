"""From a bundle back to its data, and what is said where the way ends."""

from __future__ import annotations

import json

import pytest

from lungml.fit import identity_of
from lungml.home import Home
from lungml.recipes import by_name
from tasks import promotion, registry, tracking
from tasks.lineage import BundleLineage, ModelLineage, bundle_lineage, lineage_of, model_lineage
from tasks.recorded import digests_of
from tasks.tracking import TrackingError
from tests.tasks.toy_bundles import toy_bundle, toy_fields, toy_model
from tests.tasks.toy_made import ASKED, SCANS, judge, made_bundle


def trained(home: Home, stage: str, name: str, **params: str) -> str:
    """A toy model whose run says by which settings it was trained."""
    uri = toy_model(home, stage, origin="phantom")
    client = tracking.client_of(home)
    run_id = client.get_logged_model(uri.removeprefix("models:/")).source_run_id
    client.set_tag(run_id, "mlflow.runName", name)
    for key, value in params.items():
        client.log_param(run_id, key, value)
    return uri


def test_a_bundle_knows_its_run_parameters_data_and_models(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "git_commit", lambda: "0" * 40)
    uri = made_bundle(home)
    promotion.promote(home, uri, "demo", "the first")
    found = lineage_of(home, "models:/luna@demo")
    assert isinstance(found, BundleLineage)
    assert (found.uri, found.aliases, found.pipeline_id, found.missing) == (uri, ("demo",), "flow1", ())
    assert found.parameters == {**ASKED, "luna_dir": True, "tables_dir": False, "device": "cpu"}
    assert found.run is not None
    assert {split: data.digest for split, data in found.run.data.items()} == digests_of(SCANS)
    assert found.run.environment["torch"]
    assert found.commit == "0" * 40
    assert found.code.keys() >= {"training", "crops", "inference"}
    fields = registry.read_bundle(home, uri)
    assert [(member, model.uri) for member, model in found.members] == [
        (member, fields[member]) for member in registry.BUNDLE_MEMBERS
    ]
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["parameters"]["overrides"] == {"classification.fit.epochs": 2}
    assert "named after somebody" not in json.dumps(told)


def test_the_run_that_made_it_stays_that_when_it_is_judged_again(home: Home) -> None:
    uri = made_bundle(home)
    before = bundle_lineage(home, uri).run
    later = judge(home, uri, pipeline_id="flow2")
    found = bundle_lineage(home, uri)
    assert before is not None
    assert found.run is not None
    assert (found.run.run_id, found.pipeline_id) == (before.run_id, "flow1")
    assert found.run.run_id != later


def test_what_nothing_says_is_said(home: Home) -> None:
    silent = bundle_lineage(home, toy_bundle(home))
    assert (silent.run, silent.parameters, silent.pipeline_id) == (None, {}, "")
    assert silent.missing[0].startswith("nothing says which run made it")
    model = silent.members[0][1]
    assert "its run says nothing of its data" in model.missing
    assert "its run says nothing of its recipe" in model.missing

    unsaid = bundle_lineage(home, made_bundle(home, seed=1, asked=None))
    assert unsaid.missing[0] == "its run says nothing of its parameters"

    assert unsaid.run is not None
    client = tracking.client_of(home)
    client.set_model_version_tag("luna", unsaid.uri.rpartition("/")[2], "luna.run", "0" * 32)
    assert bundle_lineage(home, unsaid.uri).missing[0] == f"the run that made it, {'0' * 32}, is gone"


def test_parents_are_walked_to_the_end(home: Home) -> None:
    first = toy_model(home, "classification")
    middle = toy_model(home, "classification", parent=first)
    last = lineage_of(home, toy_model(home, "malignancy", parent=middle))
    assert isinstance(last, ModelLineage)
    assert last.parents["classification"].uri == middle
    assert last.parents["classification"].parents["classification"].uri == first
    assert last.parents["classification"].parents["classification"].parents == {}
    orphan = model_lineage(home, toy_model(home, "malignancy", parent="models:/m-gone"))
    assert orphan.parents["classification"].missing == ("its run is gone, or it never had one",)


def test_models_that_name_each_other_end_the_walk(home: Home) -> None:
    one = toy_model(home, "classification")
    other = toy_model(home, "classification", parent=one)
    client = tracking.client_of(home)
    run_id = client.get_logged_model(one.removeprefix("models:/")).source_run_id
    client.set_tag(run_id, "luna.parent.classification", other)
    assert model_lineage(home, one).parents["classification"].uri == other


def test_settings_are_told_where_they_are_not_the_recipes(home: Home) -> None:
    recipe = by_name("demo")
    own = identity_of(recipe.scratch)
    uri = trained(
        home, "malignancy", "demo-malignancy-scratch seed 4", **{**own, "fit.epochs": "77"}, recipe="demo", seed="4"
    )
    found = model_lineage(home, uri)
    assert (found.recipe, found.settings) == ("demo", {"fit.epochs": ("77", own["fit.epochs"])})
    assert found.as_dict()["seed"] == "4"
    # Of another way to malignancy the recipe says something else.
    tuned = trained(home, "malignancy", "demo-malignancy-finetuned seed 4", **own, recipe="demo")
    assert model_lineage(home, tuned).settings["start"] == ("scratch", "nodule")
    lost = trained(home, "malignancy", "toy", recipe="forgotten")
    assert "its recipe 'forgotten' is not one of this version" in model_lineage(home, lost).missing


def test_an_imported_model_says_that(home: Home) -> None:
    uri = trained(home, "segmentation", "import unet.state", file="unet.state", origin="real")
    assert "it was imported: nothing says how it was trained" in model_lineage(home, uri).missing
    fields = toy_fields(home, origin="phantom", segmentation=uri)
    assert "imported" in bundle_lineage(home, registry.register_bundle(home, fields)).members[0][1].missing[-1]


@pytest.mark.parametrize("uri", ["models:/luna/77", "models:/m-0000", "models:/luna@champion", "luna"])
def test_what_is_not_there_is_one_line(home: Home, uri: str) -> None:
    with pytest.raises(TrackingError) as error:
        lineage_of(home, uri)
    assert len(str(error.value).splitlines()) == 1
