"""Models in and out of a bundle; the published weights themselves are read where they lie (marker `real`)."""

import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from lungml.calibration import Calibration, Platt
from lungml.candidates import GroupingError, GroupingSettings
from lungml.home import Home
from lungml.inference import InferenceSettings
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig
from tasks import registry, tracking
from tasks.bundles import (
    WeightsError,
    build_bundle,
    import_published,
    load_bundle,
    load_copy,
    load_unet,
    stage_example,
    with_grouping,
)
from tasks.members import build_model, load_member, rebuild
from tasks.promotion import promote
from tasks.tracking import TrackingError

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(model: nn.Module, seed: int) -> nn.Module:
    """Batch norm statistics and scales that are not the initial ones."""
    generator = seeded(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.01 * torch.rand(value.shape, generator=generator))
        else:
            value.add_(7)
    return model.eval()


def log(home: Home, stage: str, model: Any) -> str:
    with tracking.open_run(home, stage, name="toy") as run:
        arch = {"stage": stage, "config": asdict(model.config)}
        return tracking.log_model(run, model, arch=arch, example=stage_example(model), name="toy")


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {
        "segmentation": trained(UNet(UNetConfig(pooling="max"), generator=seeded(1)), 1),
        "nodule": trained(NoduleNet(generator=seeded(2)), 2),
        "malignancy": trained(NoduleNet(generator=seeded(3)), 3),
    }


@pytest.fixture(scope="module")
def full_home(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def fields(full_home: Home, models: dict[str, nn.Module]) -> dict[str, Any]:
    """A bundle that is not registered yet."""
    stages = {"segmentation": "segmentation", "nodule": "classification", "malignancy": "malignancy"}
    return {
        **{member: log(full_home, stage, models[member]) for member, stage in stages.items()},
        "grouping": asdict(GroupingSettings(rule="union", threshold=0.25, min_voxels=9)),
        "nodule_threshold": 0.75,
        "malignant_threshold": 0.125,
        "recipe": "toy",
        "origin": "phantom",
    }


def assert_equal_weights(found: nn.Module, expected: nn.Module) -> None:
    weights = found.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_a_bundle_comes_back_exactly(full_home: Home, fields: dict[str, Any], models: dict[str, nn.Module]) -> None:
    bundle = load_bundle(full_home, registry.register_bundle(full_home, fields), "cpu")
    for member, model in models.items():
        (found,) = getattr(bundle, member)
        assert_equal_weights(found, model)
        assert not found.training
        assert found.config == model.config
    # Mistake 13: the malignancy threshold was ignored.
    assert (bundle.nodule_threshold, bundle.malignant_threshold) == (0.75, 0.125)
    assert bundle.grouping == GroupingSettings(rule="union", threshold=0.25, min_voxels=9)
    slab = torch.randn(1, 7, 16, 24, generator=seeded(0))
    # Channels-last adds up in another order.
    torch.testing.assert_close(bundle.segmentation[0](slab), models["segmentation"](slab), rtol=1e-4, atol=1e-3)
    assert bundle.flips == ()


def test_a_bundle_is_built_once(full_home: Home, fields: dict[str, Any]) -> None:
    uri = registry.register_bundle(full_home, fields)
    assert load_bundle(full_home, uri, "cpu") is load_bundle(full_home, uri, "cpu")


def test_an_alias_that_moves_on_gives_the_newer_bundle(full_home: Home, fields: dict[str, Any]) -> None:
    # A worker lives for weeks, and the champion changes meanwhile.
    promote(full_home, registry.register_bundle(full_home, fields), "demo", "first")
    assert load_bundle(full_home, "models:/luna@demo", "cpu").nodule_threshold == 0.75
    promote(full_home, registry.register_bundle(full_home, {**fields, "nodule_threshold": 0.5}), "demo", "second")
    assert load_bundle(full_home, "models:/luna@demo", "cpu").nodule_threshold == 0.5


def test_two_homes_of_one_process_keep_apart(tmp_path: Path, home: Home, new_home: Callable[[Path], Home]) -> None:
    # MLflow writes the address in use into the environment, where `tracking_uri` takes it for the user's wish.
    (tmp_path / "second").mkdir()
    second = new_home(tmp_path / "second")
    for other in (home, second):
        with tracking.open_run(other, "segmentation", name="one"):
            pass
    for other in (home, second):
        with sqlite3.connect(other.mlflow_db) as database:
            assert database.execute("select count(*) from runs").fetchone() == (1,)


def test_members_of_another_stage_are_refused(full_home: Home, fields: dict[str, Any]) -> None:
    with pytest.raises(TrackingError, match="is a classification model, a segmentation model was asked for"):
        load_unet(full_home, fields["nodule"], CPU)
    with pytest.raises(TrackingError, match="is a malignancy model, a classification model was asked for"):
        load_member(full_home, fields["malignancy"], "classification")


SMALL = NoduleNetConfig(crop_shape=(16, 16, 32))


@pytest.mark.parametrize(
    "model", [UNet(), UNet(UNetConfig(depth=4, context_slices=1)), NoduleNet(), NoduleNet(SMALL)],
)  # fmt: skip
def test_an_example_fits_its_network(model: UNet | NoduleNet) -> None:
    example = stage_example(model)
    assert example.dtype == np.float32
    assert len(model.eval()(torch.from_numpy(example))) == len(example) == 2


# What a bundle may say beside its models

CURVE = {"slope": 0.5, "intercept": -1.0}


def test_calibration_and_means_come_back_exactly(full_home: Home, fields: dict[str, Any]) -> None:
    said = {
        "calibration": {"method": "platt", "nodule": CURVE, "malignancy": None},
        "judge_all": True,
        "inference": asdict(InferenceSettings(lungs_only=True)),
    }
    uri = registry.register_bundle(full_home, {**fields, **said})
    stored = registry.read_bundle(full_home, uri)
    assert {**stored, **said} == stored
    bundle = load_bundle(full_home, uri, "cpu")
    assert bundle.calibration == Calibration(nodule=Platt(slope=0.5, intercept=-1.0))
    assert bundle.judge_all
    # sigmoid(0.5 * logit(0.5) - 1)
    assert bundle.calibration.nodule_probs(np.array([0.5]))[0] == pytest.approx(1 / (1 + np.e))
    copy = load_copy(next(tracking.download_model(full_home, uri).rglob("bundle.json")).parent, "cpu")
    assert (copy.calibration, copy.judge_all, copy.grouping) == (bundle.calibration, True, bundle.grouping)
    for member in registry.BUNDLE_MEMBERS:
        assert_equal_weights(getattr(copy, member)[0], getattr(bundle, member)[0])
    # A lookup of what decides the findings: the recipe's name decides nothing.
    assert build_bundle(full_home, {**stored, "recipe": "other"}, "cpu") is bundle


def test_nothing_said_is_what_it_was_before(full_home: Home, fields: dict[str, Any]) -> None:
    uri = registry.register_bundle(full_home, fields)
    nothing = {"judge_all": False, "calibration": Calibration().as_dict(), "inference": asdict(InferenceSettings())}
    assert registry.register_bundle(full_home, {**fields, **nothing}) == uri
    bundle = load_bundle(full_home, uri, "cpu")
    assert (bundle.calibration, bundle.judge_all) == (Calibration(), False)


def test_the_reports_rule_asks_both_classifiers(full_home: Home, fields: dict[str, Any]) -> None:
    bundle = build_bundle(full_home, fields, "cpu")
    report = with_grouping(bundle, "report")
    assert (report.grouping, report.judge_all) == (replace(bundle.grouping, rule="report"), True)
    assert report.nodule is bundle.nodule
    with pytest.raises(GroupingError, match="unknown grouping 'none'"):
        with_grouping(bundle, "none")


# Which networks may be members


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ([], "its arch.json describes no model"),
        ({"config": {}}, "its arch.json describes no model"),
        ({"stage": "malignancy", "config": {}}, "is a malignancy model, a classification model was asked for"),
        ({"stage": "classification"}, "no network of this version of luna ('config')"),
        ({"stage": "classification", "config": {"crop": [8, 8, 8]}}, "unexpected keyword argument 'crop'"),
        ({"stage": "classification", "config": {"crop_shape": [8, 8, 9]}}, "is not made of multiples"),
        ({"stage": "classification", "config": {"crop_shape": [32, 48, 64]}}, "size mismatch for head.weight"),
        ({"stage": "classification", "config": {"depth": 3}}, "Unexpected key(s) in state_dict"),
    ],
)
def test_what_is_no_network_is_one_line(arch: Any, message: str) -> None:
    weights = NoduleNet(generator=seeded(0)).state_dict()
    with pytest.raises(TrackingError, match=re.escape(message)) as caught:
        rebuild("models:/m-1", arch, weights, "classification")
    assert str(caught.value).startswith("models:/m-1: ")
    assert "\n" not in str(caught.value)


def test_a_network_of_another_kind_is_refused() -> None:
    unet = {"stage": "classification", "config": asdict(UNetConfig())}
    with pytest.raises(TrackingError, match=r"no network of this version of luna .*context_slices"):
        rebuild("models:/m-1", unet, UNet(generator=seeded(0)).state_dict(), "classification")
    weights = UNet(generator=seeded(0)).state_dict()
    with pytest.raises(TrackingError, match="no network of this version of luna"):
        rebuild("models:/m-1", {"stage": "classification", "config": {}}, weights, "classification")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    weights = NoduleNet(generator=seeded(0)).state_dict()
    weights["head.bias"][1] = value
    with pytest.raises(TrackingError, match=r"^models:/m-1: head\.bias holds weights that are no finite numbers"):
        rebuild("models:/m-1", {"stage": "classification", "config": {}}, weights, "classification")


def test_rebuilding_moves_nobodys_random_numbers_on() -> None:
    weights = NoduleNet(generator=seeded(0)).state_dict()
    before = torch.get_rng_state()
    build_model("malignancy", asdict(NoduleNetConfig()), weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_members_may_differ_in_what_they_see(full_home: Home, fields: dict[str, Any]) -> None:
    # Each is given the crops that it was trained on.
    in_mm = NoduleNetConfig(crop_shape=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0))
    other = log(full_home, "classification", NoduleNet(in_mm, generator=seeded(9)))
    uri = registry.register_bundle(full_home, {**fields, "nodule": [fields["nodule"], other]})
    assert [net.config for net in load_bundle(full_home, uri, "cpu").nodule] == [NoduleNetConfig(), in_mm]


# Several models for one question


@pytest.fixture(scope="module")
def second(full_home: Home) -> dict[str, str]:
    """Models of another seed."""
    return {
        "segmentation": log(full_home, "segmentation", UNet(generator=seeded(4))),
        "nodule": log(full_home, "classification", NoduleNet(generator=seeded(5))),
    }


def test_an_ensemble_comes_back_exactly(
    full_home: Home, fields: dict[str, Any], second: dict[str, str], models: dict[str, nn.Module]
) -> None:
    pairs = {member: [fields[member], uri] for member, uri in second.items()}
    uri = registry.register_bundle(full_home, {**fields, **pairs, "test_time_flips": ["nodule"]})
    stored = registry.read_bundle(full_home, uri)
    assert {member: stored[member] for member in registry.BUNDLE_MEMBERS} == {
        **pairs,
        "malignancy": fields["malignancy"],
    }
    bundle = load_bundle(full_home, uri, "cpu")
    assert load_bundle(full_home, uri, "cpu") is bundle
    assert [len(bundle.segmentation), len(bundle.nodule), len(bundle.malignancy)] == [2, 2, 1]
    assert_equal_weights(bundle.nodule[0], models["nodule"])
    assert_equal_weights(bundle.nodule[1], NoduleNet(generator=seeded(5)))
    assert_equal_weights(bundle.segmentation[1], UNet(generator=seeded(4)))
    assert bundle.flips == ("nodule",)
    # Every model is a version of its stage's registered model.
    client = MlflowClient(tracking_uri=tracking.tracking_uri(full_home))
    sources = {version.source for version in client.search_model_versions("name = 'luna-classification'")}
    assert set(pairs["nodule"]) <= sources


def test_one_model_in_a_list_and_no_flips_are_what_they_were_before(full_home: Home, fields: dict[str, Any]) -> None:
    uri = registry.register_bundle(full_home, fields)
    listed = {member: [fields[member]] for member in registry.BUNDLE_MEMBERS}
    assert registry.register_bundle(full_home, {**fields, **listed, "test_time_flips": []}) == uri
    assert registry.read_bundle(full_home, uri).keys() - fields.keys() == {"code", "sha256"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodule": []}, "the bundle's nodule is an empty list"),
        ({"nodule": ["models:/m-1", "models:/luna/2"]}, "the bundle's nodule is 'models:/luna/2', not a models:/m-"),
        ({"malignancy": ["models:/m-1", "models:/m-1"]}, "the bundle's malignancy names a model twice"),
        ({"segmentation": [["models:/m-1"]]}, r"the bundle's segmentation is \['models:/m-1'\], not a models:/m-"),
        ({"test_time_flips": ["unet"]}, r"test_time_flips is \['unet'\]; give a list of some of segmentation, nodule"),
        ({"test_time_flips": True}, "test_time_flips is True; give a list"),
        ({"test_time_flips": "nodule"}, "test_time_flips is 'nodule'; give a list"),
        ({"test_time_flips": [["nodule"]]}, "give a list"),
        ({"nodule_threshold": float("nan")}, "nodule_threshold is nan, not a probability"),
        ({"nodule_threshold": "0.5"}, "nodule_threshold is '0.5', not a probability"),
        ({"judge_all": "no"}, "judge_all is 'no', not true or false"),
        ({"grouping": {"rule": "best of all"}}, "grouping is .* cannot use .unknown grouping"),
        ({"grouping": {"rule": "report", "erosions": 2}}, "grouping is .*erosions"),
        ({"grouping": "report"}, "grouping is 'report', which this version cannot use"),
        ({"inference": {"speed": 2}}, "inference is .*speed"),
        ({"inference": ["fp32"]}, "inference is .*, which this version cannot use"),
        ({"calibration": {"nodule": None}}, "calibration is .*method"),
        ({"calibration": {"method": "isotonic"}}, "calibration is .*unknown calibration 'isotonic'"),
        ({"calibration": {"method": "platt", "nodule": {"slope": -1.0, "intercept": 0.0}}}, "are no rising curve"),
        ({"calibration": {"method": "platt", "nodule": {"slope": 1.0}}}, "calibration is .*intercept"),
        ({"calibration": {"method": "none", "nodule": {"slope": 1.0, "intercept": 0.0}}}, "it means .*'platt'"),
        ({"calibration": {"method": "platt", "nodul": {"slope": 1.0, "intercept": 0.0}}}, "it means .*'none'"),
    ],
)
def test_an_ensemble_that_cannot_be_averaged_is_refused(
    full_home: Home, fields: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrackingError, match=message) as caught:
        registry.register_bundle(full_home, {**fields, **change})
    assert len(str(caught.value).splitlines()) == 1


def test_a_member_that_is_gone_costs_the_ensemble(full_home: Home, fields: dict[str, Any]) -> None:
    with pytest.raises(TrackingError, match="models:/m-gone: no such model"):
        registry.register_bundle(full_home, {**fields, "nodule": [fields["nodule"], "models:/m-gone"]})


def test_members_of_an_ensemble_are_of_one_stage(full_home: Home, fields: dict[str, Any]) -> None:
    mixed = {**fields, "nodule": [fields["nodule"], fields["malignancy"]]}
    for use in (registry.register_bundle, build_bundle):
        with pytest.raises(TrackingError, match="is a malignancy model, a classification model was asked for"):
            use(full_home, mixed)


# Published weights


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A U-Net's weights file under our own names: a PyTorch file, but not the published one."""
    path = tmp_path / "ours.state"
    torch.save({"model_state": UNet().state_dict()}, path)
    return path


def refused(home: Home, path: Path) -> str:
    """The one line that an import of a bad segmentation file ends with; nothing is registered."""
    with pytest.raises(WeightsError) as caught:
        import_published(home, path, path, path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert len(line.splitlines()) == 1
    assert_nothing_registered(home)
    return line


def assert_nothing_registered(home: Home) -> None:
    with sqlite3.connect(home.mlflow_db) as database:
        for table in ("runs", "logged_models", "registered_models"):
            assert database.execute(f"select count(*) from {table}").fetchone() == (0,)


def test_a_missing_file_is_refused(home: Home, tmp_path: Path) -> None:
    assert "no such file; give the path" in refused(home, tmp_path / "none.state")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04 cut off",
     b"\x80\x02cposix\nsystem\n(S'true'\ntR.", b"\x80\x02N.", b"\x80\x02.", b"\x80\x02M"],
    ids=["empty", "text", "cut off zip", "hostile pickle", "None", "pickle of nothing", "cut off pickle"],
)  # fmt: skip
def test_what_is_no_pytorch_file_is_refused(home: Home, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.state"
    path.write_bytes(content)
    assert "no PyTorch file" in refused(home, path)


def test_a_folder_is_refused(home: Home, tmp_path: Path) -> None:
    assert "no PyTorch file" in refused(home, tmp_path)


def test_a_file_that_breaks_off_is_refused(home: Home, good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-2000])
    assert "no PyTorch file" in refused(home, good)


@pytest.mark.parametrize(
    "content",
    [{"weights": {}}, {}, [1], torch.zeros(3), {"model_state": None}, {"model_state": [torch.zeros(3)]}],
    ids=["another key", "no key", "list", "tensor", "no weights", "weights without names"],
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_a_pytorch_file_of_something_else_is_refused(home: Home, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.state"
    torch.save(content, path)
    assert "model_state" in refused(home, path)


@pytest.mark.parametrize("state", [{}, {"a": torch.zeros(1)}, {1: torch.zeros(1)}], ids=["none", "unknown", "numbered"])
def test_other_weights_are_refused(home: Home, tmp_path: Path, state: dict[Any, Any]) -> None:
    path = tmp_path / "other.state"
    torch.save({"model_state": state}, path)
    assert re.search("not the published U-Net|no PyTorch file", refused(home, path))


def test_our_own_names_are_not_the_published_ones(home: Home, good: Path) -> None:
    assert "not the published U-Net: " in refused(home, good)


@pytest.fixture
def published() -> Path:
    where = os.environ.get("LUNGML_REAL_DATA")
    if not where:
        pytest.skip("LUNGML_REAL_DATA does not point at the real scans")
    return Path(where) / "report-weights"


@pytest.mark.real
def test_the_published_weights_become_a_real_bundle(home: Home, published: Path) -> None:
    files = [published / f"{name}.state" for name in ("segmentation", "nodule", "malignancy-finetuned")]
    uri = import_published(home, *files)
    fields = registry.read_bundle(home, uri)
    assert (fields["origin"], fields["recipe"]) == ("real", "published")
    assert {registry.origin_of(home, fields[member]) for member in registry.BUNDLE_MEMBERS} == {"real"}
    assert fields["grouping"]["rule"] == "report"
    assert (fields["nodule_threshold"], fields["malignant_threshold"]) == (0.5, 0.5)
    bundle = load_bundle(home, uri, "cpu")
    (segmentation,), (nodule,), (malignancy,) = bundle.segmentation, bundle.nodule, bundle.malignancy
    assert segmentation.config == UNetConfig(pooling="avg")
    assert nodule.config == malignancy.config == NoduleNetConfig()
    theirs = torch.load(files[0], weights_only=True, map_location="cpu")["model_state"]
    assert torch.equal(segmentation.input_norm.weight, theirs["input_batchnorm.weight"])
    assert not torch.equal(nodule.head.weight, malignancy.head.weight)


@pytest.mark.real
def test_the_published_files_in_the_wrong_order_are_refused(home: Home, published: Path) -> None:
    segmentation, nodule = published / "segmentation.state", published / "nodule.state"
    with pytest.raises(WeightsError, match=r"nodule\.state: not the published U-Net"):
        import_published(home, nodule, nodule, nodule)
    with pytest.raises(WeightsError, match=r"segmentation\.state: not a published 3D classifier") as caught:
        import_published(home, segmentation, nodule, segmentation)
    assert len(str(caught.value).splitlines()) == 1
    assert_nothing_registered(home)
