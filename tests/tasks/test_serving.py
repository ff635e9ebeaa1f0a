"""Bundles that MLflow loads and serves by itself; the networks are tiny and drawn at random."""

from __future__ import annotations

import ast
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from mlflow.pyfunc import PyFuncModel, scoring_server

from lungml.answers import Answers
from lungml.candidates import Candidates, Grouping, GroupingSettings
from lungml.ct import read_scan
from lungml.findings import FINDINGS_COLUMNS, find_nodules, findings_text
from lungml.home import Home
from lungml.inference import InferenceError
from lungml.marked import Marked
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig
from tasks import registry, serving, tracking
from tasks.bundles import load_bundle, stage_example, with_grouping
from tasks.packing import REQUIRED
from tasks.promotion import promote
from tasks.tracking import TrackingError
from tasks.truth import ScanTruth

PROJECT = Path(__file__).parents[2]
OWN_RULE = next(rule for rule in get_args(Grouping) if rule != "report")
TEXTS = ["series_uid", "stage", "reason"]
SMALL = NoduleNetConfig(crop_shape=(8, 16, 16), depth=2, width=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def uri(home: Home) -> str:
    def log(stage: str, model: Any) -> str:
        with tracking.open_run(home, stage, name="tiny") as run:
            arch = {"stage": stage, "config": asdict(model.config)}
            return tracking.log_model(run, model, arch=arch, example=stage_example(model), name="tiny")

    def drawn(model: Any) -> Any:
        """As drawn a network takes HU for numbers around 0, and all its answers are alike."""
        model.input_norm.running_mean.fill_(-500)
        model.input_norm.running_var.fill_(3e5)
        return model

    def net(seed: int) -> Any:
        return drawn(NoduleNet(SMALL, generator=torch.Generator().manual_seed(seed)))

    unet = drawn(UNet(UNetConfig(depth=2, width=2, context_slices=1), generator=torch.Generator().manual_seed(12)))
    fields = {
        "segmentation": log("segmentation", unet),
        "nodule": [log("classification", net(seed)) for seed in (2, 7)],
        "malignancy": log("malignancy", net(8)),
        "grouping": asdict(GroupingSettings(rule=OWN_RULE)),
        "nodule_threshold": 0.5,
        "malignant_threshold": 0.5,
        "recipe": "tiny",
        "origin": "phantom",
    }
    uri = registry.register_bundle(home, fields)
    promote(home, uri, "demo", "the only one")
    return uri


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, toy: Callable[..., ScanTruth]) -> list[Path]:
    folder = tmp_path_factory.mktemp("scans")
    return [toy(folder, uid, number=number).path for number, uid in enumerate(["1.10", "NA"])]


@pytest.fixture
def model(home: Home, uri: str) -> PyFuncModel:
    tracking.client_of(home)  # MLflow's own address is the process's
    return mlflow.pyfunc.load_model("models:/luna@demo", model_config={"device": "cpu"})


def test_the_table_is_what_findings_csv_holds(home: Home, uri: str, model: PyFuncModel, scans: list[Path]) -> None:
    bundle = load_bundle(home, uri, "cpu")
    files = []
    for path in scans:
        scan = read_scan(path)
        files.append(findings_text(scan.series_uid, find_nodules(scan.hu, scan.grid, bundle)))
    as_text = pd.concat(pd.read_csv(StringIO(file), dtype=str, keep_default_na=False) for file in files)
    table = model.predict([str(path) for path in scans])
    assert tuple(table.columns) == FINDINGS_COLUMNS
    assert set(table["series_uid"]) == {"1.10", "NA"}  # no number and no hole
    assert len(table) == len(as_text) > 20
    for name in FINDINGS_COLUMNS:
        if name in TEXTS:
            assert table[name].tolist() == as_text[name].tolist()
        else:
            expected = [float(value or "nan") for value in as_text[name]]
            pd.testing.assert_series_equal(table[name], pd.Series(expected, name=name), check_exact=True)
    asked = table["stage"] != "filtered"
    assert 0 < asked.sum() < len(table)
    assert table.loc[asked, "prob_malignant"].notna().all()
    assert table.loc[~asked, "prob_malignant"].isna().all()


def test_paths_come_as_a_list_a_text_or_a_table(model: PyFuncModel, scans: list[Path]) -> None:
    expected = model.predict([str(scans[0])])
    for given in (str(scans[0]), [scans[0]], pd.DataFrame({"path": [str(scans[0])]}, index=[7])):
        pd.testing.assert_frame_equal(model.predict(given), expected)
    assert model.predict(pd.DataFrame({"path": []}, dtype=str)).columns.tolist() == list(FINDINGS_COLUMNS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"uid": ["1.1"], "path": ["x.mhd"]}), "the first column is called 'uid'; give a list of paths"),
        (["x.mhd", ""], "'' is no path of a scan"),
        (pd.DataFrame({"path": ["x.mhd", None]}), "is no path of a scan"),
    ],
)
def test_what_is_no_path_is_refused(model: PyFuncModel, given: Any, message: str) -> None:
    with pytest.raises(MlflowException, match=message):
        model.predict(given)


def test_a_scan_that_cannot_be_read_costs_only_itself(model: PyFuncModel, scans: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "1.2.mhd"
    cut.write_bytes(scans[0].read_bytes())
    (tmp_path / "1.10.raw").write_bytes(b"short")
    whole = model.predict([str(scans[1])])
    table = model.predict([str(tmp_path / "none.nii.gz"), str(cut), "x" * 300 + ".mhd", str(scans[1])])
    pd.testing.assert_frame_equal(table[3:].reset_index(drop=True), whole)
    bad = table[:3]
    assert bad["series_uid"].tolist() == ["none", "1.2", "x" * 300]
    assert bad["stage"].tolist() == ["not read"] * 3
    assert bad.drop(columns=TEXTS).isna().all(axis=None)
    assert bad["reason"][0] == "no such file; check the path"
    assert "bytes" in bad["reason"][1]
    assert bad["reason"][2].endswith("cannot be read: File name too long; check the file")
    assert not any(str(tmp_path) in reason for reason in bad["reason"])


def test_a_scan_named_twice_is_answered_once(model: PyFuncModel, scans: list[Path]) -> None:
    once, twice = (model.predict([str(scans[0])] * times) for times in (1, 2))
    pd.testing.assert_frame_equal(twice[:-1], once)
    last = twice.iloc[-1]
    expected = ("1.10", "not read", "the same series_uid as a scan before it; ask for it alone")
    assert (last["series_uid"], last["stage"], last["reason"]) == expected


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (OSError(5, "Input/output error", "/scans/1.10.raw"), "Input/output error; check the path"),
        (InferenceError("no scan can be read with these settings"), "no scan can be read with these settings"),
        (None, "a nodule classifier gave a probability that is not a number; train or import it again"),
    ],
)
def test_a_scan_that_a_network_fails_on_costs_only_itself(
    model: PyFuncModel, scans: list[Path], monkeypatch: pytest.MonkeyPatch, fails: Exception | None, reason: str
) -> None:
    whole = model.predict([str(scans[1])])
    first = read_scan(scans[0]).hu

    def ask(hu: np.ndarray, *given: Any) -> Answers:
        answers = real(hu, *given)
        if not np.array_equal(hu, first):
            return answers
        if fails:
            raise fails
        return replace(answers, prob_nodule=np.full_like(answers.prob_nodule, np.nan))

    real = serving.ask
    monkeypatch.setattr(serving, "ask", ask)
    table = model.predict([str(path) for path in scans])
    pd.testing.assert_frame_equal(table[1:].reset_index(drop=True), whole)
    told = table.iloc[0]
    assert (told["series_uid"], told["stage"], told["reason"]) == ("1.10", "not read", reason)
    assert np.isnan(told["prob_nodule"])


def test_a_scan_without_candidates_has_no_rows(
    model: PyFuncModel, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "judge", lambda *_: ())
    table = model.predict([str(path) for path in scans])
    assert table.shape == (0, len(FINDINGS_COLUMNS))
    assert table["prob_nodule"].dtype.kind == "f"


def test_what_a_person_should_know_of_a_scan_is_logged(
    model: PyFuncModel, scans: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scan = replace(read_scan(scans[0]), warnings=("no lungs seen",))
    monkeypatch.setattr(serving, "read_scan", lambda _: scan)
    capped = Answers(
        marked=Marked(shape=(1, 1, 1), voxels=np.empty(0, np.int64), probs=np.empty(0, np.float32), floor=0.5),
        candidates=Candidates(centers_irc=np.empty((0, 3)), diameters_mm=np.empty(0), scores=np.empty(0), left_out=3),
        prob_nodule=np.empty(0),
        prob_malignant=np.empty(0),
    )
    monkeypatch.setattr(serving, "ask", lambda *_: capped)
    with caplog.at_level(logging.WARNING, "tasks.serving"):
        assert model.predict(["a.mhd"]).empty
    assert [record.getMessage() for record in caplog.records] == [
        "1.10: no lungs seen",
        "1.10: 3 further places are beyond the limit of candidates a scan",
    ]


def test_the_grouping_may_be_another_for_one_question(
    home: Home, uri: str, model: PyFuncModel, scans: list[Path]
) -> None:
    path = [str(scans[0])]
    own, report = model.predict(path), model.predict(path, params={"grouping": "report"})
    scan = read_scan(scans[0])
    bundle = with_grouping(load_bundle(home, uri, "cpu"), "report")
    assert len(report) == len(find_nodules(scan.hu, scan.grid, bundle)) != len(own)
    assert report["prob_malignant"].notna().all()  # the report asks both classifiers of every candidate
    pd.testing.assert_frame_equal(model.predict(path), own)
    with pytest.raises(MlflowException, match="unknown grouping 'none'; choose one of") as caught:
        model.predict(path, params={"grouping": "none"})
    assert "\n" not in str(caught.value)


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def test_a_servers_answer_is_json(model: PyFuncModel, scans: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    schema = model.metadata.get_input_schema()
    paths = [str(scans[0]), "none.mhd"]
    answers = []
    for asked in ({"inputs": paths}, {"dataframe_split": {"columns": ["path"], "data": [[path] for path in paths]}}):
        said = scoring_server.invocations(json.dumps(asked), "application/json", model, schema)
        assert said.status == 200
        answers.append(json.loads(said.response, parse_constant=no_constant)["predictions"])
    assert answers[0] == answers[1]
    assert tuple(answers[0][0]) == FINDINGS_COLUMNS
    assert {type(row["prob_nodule"]) for row in answers[0][:-1]} == {float}
    assert answers[0][-1]["prob_nodule"] is answers[0][-1]["x_mm"] is None
    monkeypatch.delenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT")
    assert len(model.predict(paths)) == len(answers[0])


# What lies in the model's folder


@pytest.fixture
def copied(home: Home, uri: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tracking.download_model(home, uri), tmp_path / "copy"))


def test_a_copy_needs_no_tracking_store(
    copied: Path, model: PyFuncModel, scans: list[Path], tmp_path: Path, new_home: Callable[[Path], Home]
) -> None:
    path = [str(scans[0])]
    expected = model.predict(path)
    (tmp_path / "other").mkdir()
    tracking.client_of(new_home(tmp_path / "other"))  # a store that knows nothing of it
    pd.testing.assert_frame_equal(mlflow.pyfunc.load_model(str(copied)).predict(path), expected)


def test_nothing_is_pickled_and_its_signature_says_what_it_takes(copied: Path) -> None:
    files = [path for path in copied.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".txt", ".py", ""}
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    info = get_model_info(str(copied))
    assert info.metadata == {"luna": "not for clinical use", "origin": "phantom"}
    signature = info.signature
    assert signature is not None
    assert signature.outputs.input_names() == list(FINDINGS_COLUMNS)
    assert [parameter.name for parameter in signature.params] == ["grouping"]
    example = json.loads((copied / "serving_input_example.json").read_text())
    assert example["dataframe_split"]["columns"] == ["path"]


def imported_by(module: str) -> set[str]:
    """The packages that importing one of our modules takes along, as far as our own modules say at their top."""
    found, todo = set[str](), [module]
    while todo:
        name = todo.pop()
        place = PROJECT / name.replace(".", "/")
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if name not in found and file.exists():
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Import):
                    todo += [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found.add(name)
    return {name.partition(".")[0] for name in found}


def test_what_it_imports_is_required(copied: Path) -> None:
    ours = {"lungml", "tasks"}
    foreign = imported_by("tasks.serving") - ours - set(sys.stdlib_module_names)
    assert foreign >= {"torch", "SimpleITK", "zarr"}
    assert foreign <= set(REQUIRED)
    lines = (copied / "requirements.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in lines} == set(REQUIRED)


@pytest.mark.parametrize("name", ["arch.json", "weights.safetensors"])
def test_a_file_that_is_not_the_registered_one_is_refused(copied: Path, name: str) -> None:
    file = next(copied.rglob(name))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TrackingError, match=f"{name}: not the file that was registered") as caught:
        mlflow.pyfunc.load_model(str(copied))
    assert len(str(caught.value).splitlines()) == 1
    file.unlink()
    with pytest.raises(TrackingError, match=f"{name}: cannot be read"):
        mlflow.pyfunc.load_model(str(copied))


# In a process of its own


@pytest.mark.slow
def test_a_new_process_needs_only_the_address(home: Home, uri: str, model: PyFuncModel, scans: list[Path]) -> None:
    code = (
        "import sys, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/luna@demo', model_config={'device': 'cpu'})\n"
        "print(model.predict(sys.argv[2:]).to_json(orient='split', double_precision=15))\n"
    )
    paths = [str(path) for path in scans]
    command = [sys.executable, "-c", code, f"sqlite:///{home.mlflow_db}", *paths]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=scans[0].parent, check=False)
    assert said.returncode == 0, said.stderr
    expected = model.predict(paths).to_json(orient="split", double_precision=15)
    assert json.loads(said.stdout) == json.loads(expected)


@pytest.fixture
def server(home: Home, uri: str, tmp_path: Path) -> Iterator[str]:
    """`mlflow models serve` on a free port; ended, with its children, whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", "models:/luna@demo", "-p", str(port)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{home.mlflow_db}", "CUDA_VISIBLE_DEVICES": ""}
    # uvicorn is looked for beside this Python.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    log = tmp_path / "serve.log"
    with log.open("w") as handle:
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=handle, stderr=handle, start_new_session=True
        )
    try:
        end = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"the server does not answer: {log.read_text()[-2000:]}")
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with suppress(ProcessLookupError):  # it ended by itself, and the test with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.mark.slow
def test_a_server_answers_on_loopback(server: str, model: PyFuncModel, scans: list[Path]) -> None:
    paths = [str(scans[0]), "none.mhd"]

    def ask(params: dict[str, str]) -> list[dict[str, Any]]:
        body = json.dumps({"inputs": paths, "params": params}).encode()
        request = urllib.request.Request(server, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            said: list[dict[str, Any]] = json.loads(answer.read(), parse_constant=no_constant)["predictions"]
            return said

    for params in ({}, {"grouping": "report"}):
        table = model.predict(paths, params=params)
        said = ask(params)
        pd.testing.assert_frame_equal(pd.DataFrame(said)[TEXTS], table[TEXTS], check_dtype=False)
        for name in set(FINDINGS_COLUMNS) - set(TEXTS):
            # Another number of threads adds up in another order.
            numbers = [float("nan") if row[name] is None else row[name] for row in said]
            assert numbers == pytest.approx(table[name].tolist(), rel=1e-4, abs=1e-6, nan_ok=True)
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask({"grouping": "none"})
    assert caught.value.code == 400
    assert "unknown grouping 'none'" in caught.value.read().decode()
