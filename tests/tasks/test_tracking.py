"""Runs, models and bundles in a SQLite MLflow of their own; the models here have a handful of weights."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch import nn

from lungml.home import Home
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig
from tasks import logged_models, registry, tracking
from tasks.promotion import promote
from tasks.tracking import Run, TrackingError

ARCH = {"stage": "segmentation", "config": {"width": 2}}
EXAMPLE = np.zeros((2, 3, 8, 8), dtype=np.float32)


class Pixelwise(nn.Module):
    """(B, 3, H, W) -> (B, 1, H, W): batch norm and a convolution, as the U-Net begins."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(slices))


class Cropwise(nn.Module):
    """(B, 1, 4, 8, 8) -> (B, 2), the crop's size fixed, as the nodule net is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * 8 * 8, 2)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.head(crops.flatten(1))


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables: making them takes a second, copying them none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("none")
    return path


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path / "artifacts")
    home.root.mkdir()
    shutil.copy(empty_database, home.mlflow_db)
    return home


@pytest.fixture
def client(home: Home) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking.tracking_uri(home))


def log(home: Home, stage: str = "segmentation", model: nn.Module | None = None) -> str:
    with tracking.open_run(home, stage, name="a run") as run:
        arch = {**ARCH, "stage": stage}
        return tracking.log_model(run, model or Pixelwise(), arch=arch, example=EXAMPLE, name="tiny")


def member(home: Home, stage: str, *, origin: str = "") -> str:
    """The smallest network of a stage, without its exported program, which takes a second to make."""
    config = {"depth": 1, "width": 1} | (
        {"context_slices": 0} if stage == "segmentation" else {"crop_shape": [2, 2, 2]}
    )
    model = UNet(UNetConfig(**config)) if stage == "segmentation" else NoduleNet(NoduleNetConfig(**config))

    def save(_: nn.Module, path: str, *, mlflow_model: Any, extra_files: list[str], **__: Any) -> None:
        for file in extra_files:
            Path(path).mkdir(exist_ok=True)
            shutil.copy(file, path)
        mlflow_model.save(f"{path}/MLmodel")

    tags = {"luna.origin": origin} if origin else {}
    with pytest.MonkeyPatch.context() as patch, tracking.open_run(home, stage, name="a run", tags=tags) as run:
        patch.setattr("mlflow.pytorch.save_model", save)
        example = np.zeros((2, 1, 2, 2) if stage == "segmentation" else (2, 1, 2, 2, 2), dtype=np.float32)
        return tracking.log_model(run, model.eval(), arch={"stage": stage, "config": config}, example=example, name="m")


def whole_bundle(home: Home, origin: str = "phantom") -> dict[str, Any]:
    return {
        "segmentation": member(home, "segmentation"),
        "nodule": member(home, "classification"),
        "malignancy": member(home, "malignancy"),
        "grouping": {"rule": "report"},
        "nodule_threshold": 0.5,
        "malignant_threshold": 0.25,
        "recipe": "demo",
        "origin": origin,
    }


# Runs


def test_a_run_holds_what_was_logged(home: Home, client: MlflowClient) -> None:
    with tracking.open_run(
        home, "segmentation", name="unet", pipeline_id="p1", params={"width": 16, "long": "x" * 9000}, tags={"a": "b"}
    ) as run:
        run.log_epoch({"train/loss": 2.0, "val/auc": math.nan}, 1)
        run.log_epoch({"train/loss": 1.0, "val/auc": 0.75}, 2)
        run.log_metrics({"test/recall": 0.5})
        run.log_text("1 2 3", "val/table.txt")
    kept = client.get_run(run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params["width"] == "16"
    assert len(kept.data.params["long"]) == 6000
    assert kept.data.tags["luna.pipeline"] == "p1"
    assert kept.data.tags["luna.stage"] == "segmentation"
    assert kept.data.tags["a"] == "b"
    logged = {name: value for name, value in kept.data.metrics.items() if not name.startswith("system/")}
    assert logged == {"train/loss": 1.0, "val/auc": 0.75, "test/recall": 0.5}
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "train/loss")] == [(1, 2.0), (2, 1.0)]
    assert client.list_artifacts(run.run_id, "val")[0].path == "val/table.txt"


class Stopped(BaseException):
    """As Prefect's cancelling signal: no Exception."""


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (Stopped, "KILLED")],
)
def test_a_run_that_ends_early_says_how(
    error: type[BaseException], status: str, home: Home, client: MlflowClient
) -> None:
    with pytest.raises(error), tracking.open_run(home, "malignancy", name="broken") as run:
        raise error
    assert client.get_run(run.run_id).info.status == status


def test_inputs_name_the_data_and_the_parent_models(home: Home, client: MlflowClient) -> None:
    parent = log(home)
    with tracking.open_run(home, "classification", name="nodule") as run:
        run.log_datasets("scans", {"train": "d" * 64}, parents={"segmentation": parent})
    kept = client.get_run(run.run_id)
    (data,) = kept.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("scans-train", "d" * 12)
    assert json.loads(data.dataset.source) == {"digest": "d" * 64}
    assert [m.model_id for m in kept.inputs.model_inputs] == [parent.removeprefix("models:/")]
    assert kept.data.tags["luna.parent.segmentation"] == parent


def test_each_split_is_an_input_of_its_own(home: Home, client: MlflowClient) -> None:
    digests = {"train": "a" * 64, "val": "b" * 64, "test": "b" * 64}  # equal data are still two inputs
    with tracking.open_run(home, "classification", name="nodule") as run:
        run.log_datasets("scans", digests, sizes={"train": {"scans": 21, "nodules": 97}})
        run.log_datasets("scans", digests)  # as a resumed training does
    inputs = client.get_run(run.run_id).inputs.dataset_inputs
    found = {i.dataset.name: ([t.value for t in i.tags], i.dataset.digest, i.dataset.profile) for i in inputs}
    assert found == {
        "scans-train": (["training"], "a" * 12, '{"scans": 21, "nodules": 97}'),
        "scans-val": (["validation"], "b" * 12, None),
        "scans-test": (["testing"], "b" * 12, None),
    }


def test_a_folder_of_figures_becomes_files_of_the_run(home: Home, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "drawn" / "val").mkdir(parents=True)
    (tmp_path / "drawn" / "roc.png").write_bytes(b"1")
    (tmp_path / "drawn" / "val" / "worst.png").write_bytes(b"2")
    with tracking.open_run(home, "segmentation", name="x") as run:
        run.log_figures(tmp_path / "drawn")
        run.log_files(tmp_path / "drawn" / "val")
        run.log_tag("luna.note", "x" * 9000)
    assert [f.path for f in client.list_artifacts(run.run_id, "figures")] == ["figures/roc.png", "figures/val"]
    assert [f.path for f in client.list_artifacts(run.run_id)] == ["environment", "figures", "worst.png"]
    assert len(client.get_run(run.run_id).data.tags["luna.note"]) == 8000


def test_a_run_tells_what_it_ran_on(home: Home, client: MlflowClient) -> None:
    with tracking.open_run(home, "segmentation", name="x") as run:
        pass
    tags = client.get_run(run.run_id).data.tags
    assert tags["env.torch"] == version("torch")
    assert tags["env.threads"] == str(torch.get_num_threads())
    text = Path(client.download_artifacts(run.run_id, "environment/requirements.txt")).read_text()
    assert f"\nmlflow=={version('mlflow')}\n" in text


# Runs that go on


def _stopped(home: Home, stage: str = "segmentation", **settings: Any) -> str:
    """A run whose training was stopped after its second epoch."""
    with suppress(Stopped), tracking.open_run(home, stage, name="a run", **settings) as run:
        run.log_epoch({"train/loss": 3.0}, 1)
        run.log_epoch({"train/loss": 2.0}, 2)
        raise Stopped
    return run.run_id


def test_a_stopped_run_goes_on_in_the_same_run(home: Home, client: MlflowClient) -> None:
    run_id = _stopped(home, params={"width": 16, "device": "cpu"}, tags={"a": "b"}, pipeline_id="p1")
    settings: dict[str, Any] = {"params": {"width": 16, "device": "cuda", "new": 1}, "pipeline_id": "p2"}
    with tracking.open_run(home, "segmentation", name="a run", run_id=run_id, **settings) as run:
        assert run.run_id == run_id
        assert client.get_run(run_id).info.status == "RUNNING"
        assert run.logged_epochs() == {1, 2}
        assert run.logged_epochs("val/loss") == set()
        run.log_epoch({"train/loss": 1.0}, 3)
    kept = client.get_run(run_id)
    assert kept.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3]
    # A parameter stays what it was at first; what it is now stands in a tag.
    assert kept.data.params == {"width": "16", "device": "cpu", "new": "1"}
    expected = {"luna.changed.device": "cuda", "luna.pipeline": "p2", "luna.resumed": "1", "a": "b"}
    assert kept.data.tags | expected == kept.data.tags
    with tracking.open_run(home, "segmentation", name="a run", run_id=run_id):
        pass
    assert client.get_run(run_id).data.tags["luna.resumed"] == "2"


def test_samples_of_the_machine_are_counted_on(home: Home, client: MlflowClient) -> None:
    run_id = _stopped(home)  # a stopped run has its last sample too
    with tracking.open_run(home, "segmentation", name="a run", run_id=run_id):
        pass
    with tracking.open_run(home, "segmentation", name="a run", run_id=run_id, sample_every_s=None):
        pass
    history = client.get_metric_history(run_id, "system/system_memory_usage_megabytes")
    assert [point.step for point in history] == [0, 1]
    assert all(point.value > 0 for point in history)


@pytest.mark.parametrize("gone", ["deleted", "unknown", "of another stage"])
def test_a_run_that_cannot_go_on_is_replaced_and_said(
    gone: str, home: Home, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = "0" * 32 if gone == "unknown" else _stopped(home, "malignancy" if gone != "deleted" else "segmentation")
    if gone == "deleted":
        client.delete_run(run_id)
    with tracking.open_run(home, "segmentation", name="anew", params={"width": 2}, run_id=run_id) as run:
        pass
    assert run.run_id != run_id
    assert client.get_run(run.run_id).info.run_name == "anew"
    assert client.get_run(run.run_id).data.params == {"width": "2"}
    (line,) = [r.getMessage() for r in caplog.records if r.name == "tasks.tracking"]
    assert line.startswith(f"the MLflow run {run_id} ")
    assert line.endswith(": training goes on in a new one")


def test_stages_keep_to_their_experiments_at_once(home: Home, client: MlflowClient) -> None:
    # Mistake of an earlier system: a parallel stage landed in the experiment that the process had set last.
    with (
        tracking.open_run(home, "segmentation", name="outer") as outer,
        tracking.open_run(home, "malignancy", name="inner") as inner,
    ):
        outer.log_metrics({"x": 1.0})
        inner.log_metrics({"x": 2.0})
    names = [client.get_experiment(client.get_run(r.run_id).info.experiment_id).name for r in (outer, inner)]
    assert names == ["luna-segmentation", "luna-malignancy"]
    assert [client.get_run(r.run_id).data.metrics["x"] for r in (outer, inner)] == [1.0, 2.0]


def test_artifacts_lie_under_the_home_whatever_folder_one_is_in(
    home: Home, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log(home)
    experiment = client.get_experiment_by_name("luna-segmentation")
    assert experiment is not None
    assert experiment.artifact_location == (home.mlruns / "luna-segmentation").as_uri()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifacts"]


def test_an_unknown_stage_is_one_line(home: Home) -> None:
    with (
        pytest.raises(TrackingError, match=r"^unknown stage 'lung'; choose one of segmentation, "),
        tracking.open_run(home, "lung", name="x"),
    ):
        pass


def test_a_deleted_experiment_says_how_to_bring_it_back(home: Home, client: MlflowClient) -> None:
    log(home)
    experiment = client.get_experiment_by_name("luna-segmentation")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with (
        pytest.raises(TrackingError, match=rf"mlflow experiments restore -x {experiment.experiment_id}$"),
        tracking.open_run(home, "segmentation", name="x"),
    ):
        pass


def test_the_tracking_uri_of_the_environment_wins(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.tracking_uri(home) == f"sqlite:///{home.root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with tracking.open_run(home, "end-to-end", name="x"):
        pass
    assert MlflowClient(f"sqlite:///{tmp_path}/other.db").get_experiment_by_name("luna-end-to-end") is not None
    assert MlflowClient(f"sqlite:///{home.mlflow_db}").get_experiment_by_name("luna-end-to-end") is None


def _open_one(root: Path) -> None:
    with tracking.open_run(Home(root), "segmentation", name=str(os.getpid())):
        pass


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path / "new")  # the tables, too, are made at once
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_open_one, args=(home.root,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    experiment = client.get_experiment_by_name("luna-segmentation")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    tracking.git_commit.cache_clear()
    try:
        assert tracking.git_commit() == ""
    finally:
        tracking.git_commit.cache_clear()


# Models


def test_a_model_comes_back_bit_for_bit_without_pickle(home: Home) -> None:
    model = Pixelwise()
    uri = log(home, model=model)
    arch, weights = tracking.load_model(home, uri, expect_stage="segmentation")
    assert arch == ARCH
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    files = [p for p in home.mlruns.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".pt2", ".yaml", ".txt", ""}


def test_logging_leaves_the_model_as_it_was(home: Home) -> None:
    model = Pixelwise().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    log(home, model=model)
    assert model.training
    assert model.norm.training
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_exported_program_takes_any_size_and_gives_the_same_logits(home: Home) -> None:
    import mlflow.pytorch

    model = Pixelwise().eval()
    exported = mlflow.pytorch.load_model(log(home, model=model))
    for shape in ((1, 3, 16, 24), (3, 3, 8, 8)):
        slices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(exported(slices), model(slices))


@pytest.mark.parametrize(
    ("model", "example", "inputs", "outputs"),
    [
        (Pixelwise(), (2, 3, 8, 8), (-1, 3, -1, -1), (-1, 1, -1, -1)),
        (Cropwise(), (2, 1, 4, 8, 8), (-1, 1, 4, 8, 8), (-1, 2)),
    ],
)
def test_the_signature_frees_what_may_differ(
    model: nn.Module, example: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...], home: Home
) -> None:
    from mlflow.models import get_model_info

    with tracking.open_run(home, "segmentation", name="x") as run:
        uri = tracking.log_model(run, model, arch=ARCH, example=np.zeros(example, np.float32), name="tiny")
    signature = get_model_info(uri).signature
    assert signature.inputs.inputs[0].shape == inputs
    assert signature.outputs.inputs[0].shape == outputs


def test_a_model_shows_with_its_run(home: Home, client: MlflowClient) -> None:
    uri = log(home)
    model = client.get_logged_model(uri.removeprefix("models:/"))
    assert (model.status, model.model_type, model.params) == ("READY", "segmentation", {"width": "2"})
    assert model.source_run_id is not None
    assert [m.model_id for m in client.get_run(model.source_run_id).outputs.model_outputs] == [model.model_id]


def test_a_card_lies_beside_the_model_and_describes_its_run(home: Home, client: MlflowClient) -> None:
    with tracking.open_run(home, "segmentation", name="x") as run:
        uri = tracking.log_model(run, Pixelwise(), arch=ARCH, example=EXAMPLE, name="tiny", card="# Größe\n")
    cards = [path.read_text(encoding="utf-8") for path in home.mlruns.rglob("README.md")]
    assert cards == ["# Größe\n"] * 2  # of the model and of the run
    assert client.get_run(run.run_id).data.tags["mlflow.note.content"] == "# Größe\n"
    assert tracking.load_model(home, uri)[0] == ARCH


def test_a_model_that_cannot_be_kept_is_marked_failed(
    home: Home, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logged_models, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        log(home)
    experiment = client.get_experiment_by_name("luna-segmentation")
    assert experiment is not None
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.status == "FAILED"
    with pytest.raises(TrackingError):
        tracking.load_model(home, f"models:/{model.model_id}")


def test_a_model_of_another_stage_is_one_line(home: Home) -> None:
    uri = log(home)
    with pytest.raises(TrackingError, match=rf"^{uri}: is a segmentation model, a malignancy model was asked for$"):
        tracking.load_model(home, uri, expect_stage="malignancy")


@pytest.mark.parametrize("uri", ["models:/m-00000000000000000000000000000000", "models:/luna/7", "models:/luna@best"])
def test_an_absent_model_is_one_line(uri: str, home: Home) -> None:
    with pytest.raises(TrackingError, match=rf"^{uri}: no such model in sqlite:///\S+ \(.+\)$") as caught:
        tracking.load_model(home, uri)
    assert "\n" not in str(caught.value)
    assert not tracking.model_exists(home, uri)


@pytest.mark.parametrize("uri", ["", "luna/1", "/etc", "https://example.org/model"])
def test_only_models_are_models(uri: str, home: Home) -> None:
    with pytest.raises(TrackingError, match="is no model"):
        tracking.load_model(home, uri)


def test_a_model_whose_files_are_gone_does_not_exist(home: Home) -> None:
    uri = log(home)
    assert tracking.model_exists(home, uri)
    next(home.mlruns.rglob("weights.safetensors")).unlink()
    assert not tracking.model_exists(home, uri)


# Bundles


def test_a_bundle_comes_back_by_version_and_alias(home: Home, client: MlflowClient) -> None:
    bundle = whole_bundle(home)
    assert registry.register_bundle(home, bundle) == "models:/luna/1"
    assert registry.register_bundle(home, {**bundle, "nodule_threshold": 0.7}) == "models:/luna/2"
    assert client.get_registered_model("luna").aliases == {}  # who stands is not decided here
    client.set_registered_model_alias("luna", "demo", "2")
    first, demo = registry.read_bundle(home, "models:/luna/1"), registry.read_bundle(home, "models:/luna@demo")
    # An equal one is no new version.
    assert registry.register_bundle(home, {**bundle, "nodule_threshold": 0.7}) == "models:/luna/2"
    assert {**first, **bundle} == first
    assert first.keys() - bundle.keys() == {"code", "sha256"}
    assert (first["nodule_threshold"], demo["nodule_threshold"]) == (0.5, 0.7)
    assert len(list(home.mlruns.rglob("bundle.json"))) == 2
    # The members are versions of their own models, each once however often it is bundled.
    for member, stage in registry.BUNDLE_MEMBERS.items():
        (version,) = client.search_model_versions(f"name = 'luna-{stage}'")
        assert version.source == bundle[member]


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda bundle: {key: value for key, value in bundle.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("malignancy"), "lacks malignancy"),
        (_without("grouping"), "lacks grouping"),
        (lambda b: {**b, "origin": "demo"}, "origin is 'demo', not 'real' or 'phantom'"),
        (lambda b: {**b, "nodule": "runs:/1/model"}, "nodule is 'runs:/1/model', not a models:/m-... URI"),
        (lambda b: {**b, "malignant_threshold": 50}, "malignant_threshold is 50, not a probability"),
        (lambda b: {**b, "nodule": "models:/m-gone"}, "models:/m-gone: no such model"),
        (lambda b: {**b, "nodule": b["malignancy"]}, "is a malignancy model, a classification model was asked for"),
        (lambda b: {**b, "nodule_thresold": 0.1}, "the bundle has nodule_thresold, which this version of luna does"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, home: Home, client: MlflowClient
) -> None:
    with pytest.raises(TrackingError) as caught:
        registry.register_bundle(home, change(whole_bundle(home)))
    assert message in str(caught.value)
    assert not client.search_model_versions("name = 'luna'")


def test_a_bundle_is_registered_anew_when_its_copies_are_damaged(home: Home) -> None:
    bundle = whole_bundle(home)
    registry.register_bundle(home, bundle)
    copies = next(home.mlruns.rglob("bundle.json")).parent
    assert registry.register_bundle(home, bundle) == "models:/luna/1"
    next(copies.rglob("weights.safetensors")).unlink()
    assert registry.register_bundle(home, bundle) == "models:/luna/2"


@pytest.mark.parametrize("origin", ["real", "phantom"])
def test_members_of_another_origin_are_refused(origin: str, home: Home, client: MlflowClient) -> None:
    bundle = {**whole_bundle(home, origin), "nodule": member(home, "classification", origin=origin)}
    registry.register_bundle(home, bundle)  # one says so, the others say nothing
    other = "phantom" if origin == "real" else "real"
    strange = member(home, "classification", origin=other)
    assert registry.origin_of(home, strange) == other
    words = {"real": "real", "phantom": "synthetic"}
    message = f"^{strange}: learned from {words[other]} scans; a bundle of {words[origin]} scans cannot hold it$"
    with pytest.raises(TrackingError, match=message):
        registry.register_bundle(home, {**bundle, "nodule": [bundle["nodule"], strange]})
    assert len(client.search_model_versions("name = 'luna'")) == 1


def test_a_model_is_no_bundle(home: Home) -> None:
    uri = log(home)
    with pytest.raises(TrackingError, match=rf"^{uri}: is not a bundle; give models:/luna/N$"):
        registry.read_bundle(home, uri)


def test_logging_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path / "new")  # making the tables says nothing either
    promote(home, registry.register_bundle(home, whole_bundle(home)), "demo", "first")
    assert capfd.readouterr() == ("", "")


def test_a_run_is_opened_without_the_process_wide_run(home: Home) -> None:
    import mlflow

    with tracking.open_run(home, "segmentation", name="x") as run:
        assert isinstance(run, Run)
        assert mlflow.active_run() is None


@pytest.mark.parametrize("name", ["weights.safetensors", "arch.json"])
def test_a_damaged_model_is_one_line_and_does_not_exist(name: str, home: Home) -> None:
    uri = log(home)
    file = next(home.mlruns.rglob(name))
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(TrackingError, match=rf"^{uri}: its files are damaged"):
        tracking.load_model(home, uri)
    assert not tracking.model_exists(home, uri)
