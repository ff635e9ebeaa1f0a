"""How do models get in and out of a bundle?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
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
from tasks.members import load_member, rebuild
from tasks.packing import BUNDLE_FILE, MEMBER_FILES, member_file


class WeightsError(LunaError):
    """A weights file is missing, unreadable or holds another network; the message is one line."""


def load_bundle(home: Home, uri: str, device: str = "auto") -> Bundle:
    """Rebuild a bundle's models once per process, on one device, without pickle."""
    return build_bundle(home, registry.read_bundle(home, uri), device)


def build_bundle(home: Home, fields: Mapping[str, Any], device: str = "auto") -> Bundle:
    """The same of a bundle's fields, registered or not.

    Raises:
        TrackingError: a model is not there or not what it is asked for as, or a setting is none.
    """
    # By what decides its findings, not by URI: an alias moves on.
    deciding = {name: value for name, value in fields.items() if name in registry.DECIDING_FIELDS}
    return _build_bundle(home, json.dumps(deciding, sort_keys=True), device)


@lru_cache(maxsize=4)  # two at once, each on the CPU and on a GPU
def _build_bundle(home: Home, bundle_json: str, device: str) -> Bundle:
    return _assemble(json.loads(bundle_json), lambda uri, stage: load_member(home, uri, stage), device)


def load_copy(folder: Path, device: str = "auto") -> Bundle:
    """Rebuild a bundle from the folder that its pyfunc model carries; no tracking store is asked.

    Args:
        folder: holds `bundle.json` and a folder for each model, see `registry.register_bundle`.
        device: auto, cpu or cuda.

    Raises:
        TrackingError: the bundle is not whole, or a file is not the one that was registered.
    """
    fields = registry.read_bundle_file(folder / BUNDLE_FILE)
    registry.check_files(folder, fields)

    def read(uri: str, stage: str) -> UNet | NoduleNet:
        arch, weights = (folder / member_file(uri, name) for name in MEMBER_FILES)
        return rebuild(uri, json.loads(arch.read_text()), load_file(weights), stage)

    return _assemble(fields, read, device)


def _assemble(fields: Mapping[str, Any], read: Callable[[str, str], UNet | NoduleNet], device: str) -> Bundle:
    """A bundle on one device; `read` gives the network behind a URI, of a stage."""
    target = resolve_device(device)
    members: dict[str, Any] = {
        member: tuple(place(read(uri, stage), target).eval() for uri in registry.member_uris(fields, member))
        for member, stage in registry.BUNDLE_MEMBERS.items()
    }
    return Bundle(**members, **registry.bundle_settings(fields))


def with_grouping(bundle: Bundle, rule: str) -> Bundle:
    """The bundle with another rule of grouping; the report's asks both classifiers about every candidate.

    Raises:
        GroupingError: no rule is called so.
    """
    grouping = replace(bundle.grouping, rule=rule)  # type: ignore[arg-type]
    return replace(bundle, grouping=grouping, judge_all=bundle.judge_all or rule == "report")


def load_unet(home: Home, uri: str, device: torch.device) -> UNet:
    """Rebuild a logged U-Net, in eval mode on a device."""
    model = load_member(home, uri, "segmentation")
    assert isinstance(model, UNet)
    return place(model, device).eval()


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
    with tracking.open_run(
        home,
        stage,
        name=f"import {path.name}",
        params={"file": path.name, "origin": "real"},
        tags={"luna.origin": "real"},
    ) as run:
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
