"""How do models get in and out of a bundle?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lungml.candidates import GroupingSettings
from lungml.devices import resolve_device
from lungml.errors import LunaError
from lungml.findings import Bundle
from lungml.home import Home
from lungml.models import nodule_net, place, unet
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig
from tasks import registry, tracking


class WeightsError(LunaError):
    """A weights file is missing, unreadable or holds another network; the message is one line."""


def load_bundle(home: Home, uri: str, device: str = "auto") -> Bundle:
    """Rebuild a bundle's models once per process, on one device, without pickle."""
    # By content, not by URI: an alias moves on.
    return _build_bundle(home, json.dumps(registry.read_bundle(home, uri), sort_keys=True), device)


@lru_cache(maxsize=2)
def _build_bundle(home: Home, bundle_json: str, device: str) -> Bundle:
    fields = json.loads(bundle_json)
    target = resolve_device(device)

    def nets(member: str) -> tuple[NoduleNet, ...]:
        stage = registry.BUNDLE_MEMBERS[member]
        return tuple(load_nodule_net(home, uri, target, stage) for uri in registry.member_uris(fields, member))

    return Bundle(
        segmentation=tuple(load_unet(home, uri, target) for uri in registry.member_uris(fields, "segmentation")),
        nodule=nets("nodule"),
        malignancy=nets("malignancy"),
        grouping=GroupingSettings(**fields["grouping"]),
        nodule_threshold=fields["nodule_threshold"],
        malignant_threshold=fields["malignant_threshold"],
        flips=tuple(fields.get("test_time_flips", ())),
    )


def load_unet(home: Home, uri: str, device: torch.device) -> UNet:
    """Rebuild a logged U-Net, in eval mode on a device."""
    arch, weights = tracking.load_model(home, uri, expect_stage="segmentation")
    model = build_model("segmentation", arch["config"], weights)
    assert isinstance(model, UNet)
    return place(model, device).eval()


def load_nodule_net(home: Home, uri: str, device: torch.device, stage: str) -> NoduleNet:
    """Rebuild a logged 3D classifier, in eval mode on a device."""
    arch, weights = tracking.load_model(home, uri, expect_stage=stage)
    model = build_model(stage, arch["config"], weights)
    assert isinstance(model, NoduleNet)
    return place(model, device).eval()


def build_model(stage: str, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> UNet | NoduleNet:
    """A stage's network from the fields of its configuration and its weights, on the CPU."""
    model = UNet(UNetConfig(**config)) if stage == "segmentation" else NoduleNet(NoduleNetConfig(**config))
    model.load_state_dict(weights)
    return model


def import_published(home: Home, segmentation: Path, nodule: Path, malignancy: Path) -> str:
    """Register the report's published weights as three models and their bundle; returns the bundle's URI.

    Raises:
        WeightsError: when a file is missing, is no weights file, or holds another network.
    """
    unet_model = UNet(UNetConfig(pooling="avg"))
    _load(unet_model, segmentation, unet.load_published)
    nets = []
    for path in (nodule, malignancy):
        net = NoduleNet(NoduleNetConfig())
        _load(net, path, nodule_net.load_published)
        nets.append(net)
    uris = {
        "segmentation": _log(home, "segmentation", unet_model, segmentation),
        "nodule": _log(home, "classification", nets[0], nodule),
        "malignancy": _log(home, "malignancy", nets[1], malignancy),
    }
    return registry.register_bundle(
        home,
        {
            **uris,
            "grouping": asdict(GroupingSettings(rule="report")),
            "nodule_threshold": 0.5,
            "malignant_threshold": 0.5,
            "recipe": "published",
            "origin": "real",
        },
    )


def _load(
    model: nn.Module, path: Path, rename: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")["model_state"]
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
        ):
            raise TypeError("model_state is no mapping of names to tensors")
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; give the path of a published .state file") from error
    except Exception as error:  # PyTorch's unpickler lets anything out: IndexError, struct.error, AttributeError, ...
        raise WeightsError(f"{path}: no PyTorch file with a `model_state`; give a published .state file") from error
    try:
        model.load_state_dict(rename(state))
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _log(home: Home, stage: str, model: UNet | NoduleNet, path: Path) -> str:
    with tracking.open_run(home, stage, name=f"import {path.name}", params={"file": path.name}) as run:
        return tracking.log_model(
            run,
            model,
            arch={"stage": stage, "config": asdict(model.config)},
            example=stage_example(model),
            name=f"published-{stage}",
        )


def stage_example(model: UNet | NoduleNet) -> np.ndarray:
    """A small input of a model, batch 2: what its export and signature are made with."""
    if isinstance(model, UNet):
        shape: tuple[int, ...] = (2, model.config.channels, 4 * model.config.multiple, 4 * model.config.multiple)
    else:
        shape = (2, 1, *model.config.crop_shape)
    return np.zeros(shape, dtype=np.float32)
