"""What is the least time that a network can take?

Imports what a GPU machine has.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn


def convolutions_alone(model: nn.Module, example: torch.Tensor, *, times: int) -> Callable[[], None]:
    """A network's convolutions on inputs of their shapes, channels-last: no norm, ReLU or pooling.

    Args:
        model: on any device, in any precision that its convolutions have.
        example: an input of the network, on its device.
        times: how often the example's work is done.
    """
    layout = torch.channels_last_3d if example.ndim == 5 else torch.channels_last
    layers: list[tuple[nn.Module, torch.Tensor]] = []

    def remember(layer: nn.Module, arguments: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        layers.append((layer, torch.randn_like(arguments[0]).contiguous(memory_format=layout)))

    hooked = deepcopy(model)
    for layer in hooked.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d):
            layer.register_forward_hook(remember)
    with torch.inference_mode():
        hooked(example.to(memory_format=layout))
    bare = [(layer.forward, picture) for layer, picture in layers]  # `forward` itself: the hooks stay silent

    @torch.inference_mode()
    def run() -> None:
        for _ in range(times):
            for convolve, picture in bare:
                convolve(picture)

    return run
