"""Which network is this model of a bundle, and may it be one?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lungml.home import Home
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig
from tasks import tracking
from tasks.tracking import TrackingError


def load_member(home: Home, uri: str, stage: str) -> UNet | NoduleNet:
    """A logged model as the network it is, on the CPU.

    Raises:
        TrackingError: there is no such model, or it is not what `rebuild` asks for.
    """
    arch, weights = tracking.load_model(home, uri)
    return rebuild(uri, arch, weights, stage)


def rebuild(uri: str, arch: Any, weights: Mapping[str, torch.Tensor], stage: str) -> UNet | NoduleNet:
    """A network from what a model's files hold, on the CPU.

    The settings of its input (slices of context, size and spacing of a crop) are in `arch` and go with each model, so
    that the models of one question may differ in them. HU are clipped alike for all of them. What must fit is the
    stage, and the weights to the configuration; a setting that is not known here is another version's.

    Args:
        uri: of the model, for the message.
        arch: {"stage": ..., "config": fields of `UNetConfig` or `NoduleNetConfig`}.
        weights: by name.
        stage: what it is asked for as.

    Raises:
        TrackingError: it is of another stage, its configuration and weights make no network, or a weight is not a
            finite number.
    """
    if not isinstance(arch, Mapping) or not isinstance(arch.get("stage"), str):
        raise TrackingError(f"{uri}: its arch.json describes no model; train or import it again")
    if arch["stage"] != stage:
        raise TrackingError(f"{uri}: is a {arch['stage']} model, a {stage} model was asked for")
    try:
        model = build_model(stage, arch["config"], weights)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # PyTorch lists every weight on a line of its own
        why = " ".join(str(error).split())[:200]
        raise TrackingError(f"{uri}: no network of this version of luna ({why}); train or import it again") from error
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise TrackingError(f"{uri}: {broken[0]} holds weights that are no finite numbers; train or import it again")
    return model


def build_model(stage: str, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> UNet | NoduleNet:
    """A stage's network from the fields of its configuration and its weights, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # the weights drawn first are thrown away; nobody's numbers move on
        model = UNet(UNetConfig(**config)) if stage == "segmentation" else NoduleNet(NoduleNetConfig(**config))
    model.load_state_dict(weights)
    return model
