"""Registered bundles of small random models, kept without an export: seconds less for each."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mlflow.entities import LoggedModelStatus
from mlflow.models import Model
from safetensors.torch import save_file

from lungml.candidates import GroupingSettings
from lungml.home import Home
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig
from tasks import registry, tracking

SMALL = NoduleNetConfig(crop_shape=(16, 16, 16), depth=2, width=2)
TRAINED_ON = {"9.1": "train", "9.2": "val", "9.3": "test"}
STAGES = {"segmentation": "segmentation", "nodule": "classification", "malignancy": "malignancy"}


def toy_model(
    home: Home,
    stage: str,
    *,
    origin: str = "real",
    scans: Mapping[str, str] | None = TRAINED_ON,
    config: NoduleNetConfig | UNetConfig | None = None,
    parent: str | None = None,
) -> str:
    """A logged model and its run, which says what it learned from, unless `scans` is None, and what it started from."""
    model: Any = UNet(config) if isinstance(config, UNetConfig) else NoduleNet(config or SMALL)  # type: ignore[arg-type]
    if stage == "segmentation" and config is None:
        model = UNet(UNetConfig(depth=1, width=2))
    tags = {"luna.origin": origin} if scans is not None else {}
    if parent:
        tags["luna.parent.classification"] = parent
    with tracking.open_run(home, stage, name="toy", tags=tags, sample_every_s=None) as run:
        if scans is not None:
            run.log_text(json.dumps(scans), tracking.SCANS)
        logged = run.client.create_logged_model(run.experiment_id, name="toy", source_run_id=run.run_id)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "arch.json").write_text(json.dumps({"stage": stage, "config": asdict(model.config)}))
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, Path(folder) / "weights.safetensors")
        Model(model_id=logged.model_id).save(str(Path(folder) / "MLmodel"))
        run.client.log_model_artifacts(logged.model_id, folder)
    run.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return f"models:/{logged.model_id}"


def toy_fields(home: Home, *, origin: str = "real", seed: int = 0, **members: Any) -> dict[str, Any]:
    """A bundle that is not registered yet; members that are not given are logged."""
    torch.manual_seed(seed)
    return {
        **{name: members.get(name) or toy_model(home, stage, origin=origin) for name, stage in STAGES.items()},
        "grouping": asdict(GroupingSettings(rule="report")),
        "nodule_threshold": 0.5,
        "malignant_threshold": 0.5,
        "recipe": "toy",
        "origin": origin,
    }


def toy_bundle(home: Home, **given: Any) -> str:
    """The same, registered; returns its URI."""
    return registry.register_bundle(home, toy_fields(home, **given))


def old_bundle(home: Home, **given: Any) -> str:
    """The same as an older version of luna registered it: `bundle.json` alone, no copies and nothing to load."""
    client, fields = tracking.client_of(home), toy_fields(home, **given)
    logged = client.create_logged_model(tracking.experiment_id_of(home, "end-to-end"), name="luna-bundle")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bundle.json").write_text(json.dumps({**fields, "code": "0123456"}))
        Model(model_id=logged.model_id).save(str(Path(folder) / "MLmodel"))
        client.log_model_artifacts(logged.model_id, folder)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return f"models:/luna/{registry.register_version(client, 'luna', f'models:/{logged.model_id}')}"


def forget_aliases(home: Home) -> None:
    """Take all aliases, and what was written on the bundles, away again."""
    client = tracking.client_of(home)
    for name in ("luna", *(f"luna-{stage}" for stage in STAGES.values())):
        for alias in list(client.get_registered_model(name).aliases):
            client.delete_registered_model_alias(name, alias)
    for version in client.search_model_versions("name = 'luna'"):
        for tag in version.tags:
            client.delete_model_version_tag("luna", version.version, tag)
