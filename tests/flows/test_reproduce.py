"""A bundle made by a whole tiny pipeline, described, walked back to its data, and made again to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console

from flows.end_to_end import Summary, end_to_end
from flows.reproduce import reproduce
from flows.show_lineage import show_lineage, show_reproduction
from lungml import recipes
from lungml.home import Home
from lungml.phantom import PhantomSettings, write_phantoms
from tasks import promotion, registry, runs, tracking
from tasks.lineage import BundleLineage, lineage_of
from tasks.manifest import described_at, verify
from tasks.reproducible import ReproductionError
from tests.flows.test_end_to_end import STRIDE, tiny

COMMIT = "c0ffee" + 34 * "0"  # clean, whatever state this tree is in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def luna_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("luna16")
    settings = PhantomSettings(size_irc=(40, 96, 96), nodules=(3, 4), malignant_share=0.5, negatives_per_nodule=6)
    write_phantoms(folder, scans=9, seed=3, settings=settings, workers=1)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("artifacts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", str(home.root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setitem(recipes.RECIPES, "demo", tiny)
        patch.setattr(tracking, "git_commit", lambda: COMMIT)
        with prefect_test_harness(server_startup_timeout=180):
            yield home


@pytest.fixture(scope="module")
def first(home: Home, luna_dir: Path) -> Summary:
    return end_to_end(str(luna_dir), val_stride=STRIDE, overrides={"classification.fit.batch_size": 8})


@pytest.fixture(scope="module")
def lineage(first: Summary, home: Home) -> BundleLineage:
    found = lineage_of(home, "models:/luna@demo")
    assert isinstance(found, BundleLineage)
    return found


def test_one_walks_from_the_bundle_to_its_data(first: Summary, lineage: BundleLineage, home: Home) -> None:
    assert (lineage.uri, lineage.aliases, lineage.missing) == (first.trained.bundle_uri, ("demo",), ())
    assert lineage.decision.startswith("promoted")
    asked = lineage.parameters
    assert (asked["recipe"], asked["seed"], asked["val_stride"], asked["device"]) == ("demo", 0, STRIDE, "cpu")
    assert (asked["luna_dir"], asked["tables_dir"]) == (True, False)  # whether, not where
    assert asked["overrides"] == {"classification.fit.batch_size": 8}
    assert [model.uri for _, model in lineage.members] == [model.uri for model in first.trained.members]
    assert not [text for _, model in lineage.members for text in model.missing]

    segmentation, nodule, finetuned, scratch = (model for _, model in lineage.members)
    assert lineage.run is not None
    assert segmentation.run is not None
    assert segmentation.run.data == lineage.run.data  # of the others, mined crops are part
    assert {split: data.sizes["scans"] for split, data in lineage.run.data.items()} == {"train": 4, "val": 3, "test": 2}
    assert nodule.parents == {"segmentation": segmentation}
    assert finetuned.parents == {"classification": nodule}
    assert scratch.parents == {}
    assert nodule.settings == {"fit.batch_size": ("8", str(tiny().classification.fit.batch_size))}
    assert segmentation.settings == {}


def test_the_tree_fits_a_terminal(lineage: BundleLineage, home: Home) -> None:
    console = Console(width=200, record=True, highlight=False, markup=False)
    show_lineage(lineage, described_at(home, lineage.uri), console)
    said = console.export_text()
    assert max(map(len, said.splitlines())) <= 80
    assert "as above" in said  # the nodule classifier stands in the tree twice, what is known of it once
    assert said.count("other settings than the recipe's") == 1


def test_manifest_and_card_agree_with_the_bundle(first: Summary, lineage: BundleLineage, home: Home) -> None:
    uri = lineage.uri
    assert verify(home, uri) == ()
    at = described_at(home, uri)
    manifest = json.loads(at.manifest.read_text())
    assert manifest["data"]["train"]["scans"] == 4
    assert manifest["metrics"]["test"]["cpm"]["observed"] == first.scores[1].froc.cpm
    assert manifest["files"].keys() == {"bundle.json", *registry.read_bundle(home, uri)["sha256"]}
    folder = tracking.download_model(home, uri)
    assert lineage.run is not None
    assert (folder / "manifest.json").read_bytes() == at.manifest.read_bytes()
    assert runs.read_json(home, lineage.run.run_id, "manifest.json") == manifest
    card = at.card.read_text()
    assert (folder / "README.md").read_text() == card
    for text in (card, at.manifest.read_text(), json.dumps(lineage.as_dict())):
        assert str(home.root) not in text
        assert str(home.root.parent) not in text


def test_it_is_made_again_to_the_last_bit(first: Summary, lineage: BundleLineage, home: Home) -> None:
    bearer = promotion.alias_of(home, "demo")
    result = reproduce("models:/luna@demo")
    assert result.first_different is None, [(s.name, s.different[:9]) for s in result.stages if s.different]
    assert [stage.name for stage in result.stages] == [
        "segmentation", "nodule", "malignancy", "malignancy 2", "bundle", "val", "test",
    ]  # fmt: skip
    assert result.uri == lineage.uri
    # Made anew, not found: other models, of another bundle, with equal weights.
    made = lineage_of(home, result.made)
    assert isinstance(made, BundleLineage)
    assert not {m.uri for _, m in made.members} & {m.uri for _, m in lineage.members}
    for stage in result.stages[:4]:
        assert stage.then["sha256 of weights.safetensors"] == stage.now["sha256 of weights.safetensors"]
        assert stage.then["best_epoch"] == stage.now["best_epoch"]
        assert stage.then["train/loss"] == stage.now["train/loss"]
    assert {"val/cpm", "val/scorecard.froc.cpm"} <= result.stages[-2].then.keys()
    # It stands before no gate.
    assert promotion.alias_of(home, "demo") == bearer
    assert (made.aliases, made.decision) == ((), "")
    assert made.tags["luna.reproduces"] == lineage.uri

    console = Console(width=80, record=True, highlight=False, markup=False)
    show_reproduction(result, console)
    assert f"{result.made} is {result.uri} made again" in console.export_text()
    assert not list(home.rounds.glob("*/round.json"))


def test_other_data_and_code_are_refused_before_anything_is_trained(
    lineage: BundleLineage, home: Home, luna_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(luna_dir, tmp_path / "less")
    assert lineage.run is not None
    gone = min(runs.read_json(home, lineage.run.run_id, "data.json")["train"]["scans"])
    for file in (tmp_path / "less").rglob(f"{gone}.*"):
        file.unlink()
    before = len(promotion.list_bundles(home))
    with pytest.raises(ReproductionError, match=rf"other data in train: 1 gone .*{gone}"):
        reproduce(lineage.uri, str(tmp_path / "less"))
    monkeypatch.setattr(tracking, "git_commit", lambda: f"{COMMIT}-dirty")
    with pytest.raises(ReproductionError, match="--any-code"):
        reproduce(lineage.uri)
    assert len(promotion.list_bundles(home)) == before
