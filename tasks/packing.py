"""How does a bundle become one model that MLflow loads and serves alone?

Its folder holds `bundle.json`, a copy of every member's weights with their sha256, and `served.py`, which MLflow runs
to get the model: nothing is pickled, and no tracking store is needed to load it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from lungml.findings import FINDINGS_COLUMNS
from tasks.tracking import TrackingError

BUNDLE_FILE = "bundle.json"
MEMBER_FILES = ("arch.json", "weights.safetensors")
TEXT_COLUMNS = ("series_uid", "stage", "reason")  # of findings.csv; the others are numbers
CODE = Path(__file__).with_name("served.py")
# What finding nodules imports. luna itself lies on no package index: it must be installed already.
REQUIRED = (
    "mlflow", "torch", "numpy", "scipy", "pandas", "safetensors", "pydicom", "nibabel", "SimpleITK", "zarr", "xxhash",
    "psutil", "httpx", "sqlalchemy",
)  # fmt: skip


def member_file(uri: str, name: str) -> str:
    """Where a member's file lies in the bundle's folder."""
    return f"{uri.removeprefix('models:/')}/{name}"


def save_packed(path: Path, bundle: Mapping[str, Any], files: Mapping[str, Path], model_id: str) -> None:
    """Save a bundle as a pyfunc model.

    Args:
        path: the model's folder, which is made.
        bundle: written as `bundle.json`.
        files: name in the bundle's folder -> where the file lies now.
        model_id: of the logged model that it becomes.
    """
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "bundle"
        packed.mkdir()
        (packed / BUNDLE_FILE).write_text(json.dumps(bundle, indent=1))
        for name, file in files.items():
            (packed / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, packed / name)
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(CODE),
            artifacts={"bundle": str(packed)},
            model_config={"device": "auto"},
            metadata={"luna": "not for clinical use", "origin": bundle["origin"]},
            signature=_signature(),
            input_example=pd.DataFrame({"path": ["scans/1.2.3.mhd"]}),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED],
            mlflow_model=Model(model_id=model_id),
        )


def check_packed(folder: Path, bundle: Mapping[str, Any], uris: list[str]) -> None:
    """See that a bundle's folder holds the very files that were registered.

    Raises:
        TrackingError: naming the first that is not.
    """
    listed = bundle.get("sha256", {})
    for name in (member_file(uri, file) for uri in uris for file in MEMBER_FILES):
        if name not in listed:
            raise TrackingError(f"{folder / BUNDLE_FILE}: no sha256 of {name}; luna model promote registers it anew")
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise TrackingError(f"{folder / name}: cannot be read ({error.strerror}); run or import again") from error
        if found != listed[name]:
            raise TrackingError(f"{folder / name}: not the file that was registered; run or import again")


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _signature() -> ModelSignature:
    # Without a name: MLflow takes a list of texts only for a column that has none.
    paths = Schema([ColSpec(DataType.string)])
    columns = Schema(
        [
            ColSpec(DataType.string, name) if name in TEXT_COLUMNS else ColSpec(DataType.double, name, required=False)
            for name in FINDINGS_COLUMNS
        ]
    )
    return ModelSignature(paths, columns, ParamSchema([ParamSpec("grouping", DataType.string, None)]))
