"""Is this crop a nodule (or, trained on other labels, a malignant one)?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lungml.models import rename_published


@dataclass(frozen=True, kw_only=True)
class NoduleNetConfig:
    """The shape of the network: JSON-able by `dataclasses.asdict`, rebuilt by `NoduleNetConfig(**fields)`.

    Attributes:
        crop_shape: (index, row, col) voxels, each a multiple of 2**depth.
        depth: blocks; each halves the crop.
        width: channels of the first block; they double at each next one.
    """

    crop_shape: tuple[int, int, int] = (32, 48, 48)
    depth: int = 4
    width: int = 8

    def __post_init__(self) -> None:
        index, row, col = self.crop_shape
        object.__setattr__(self, "crop_shape", (index, row, col))  # JSON gives a list back
        if self.depth < 1 or self.width < 1:
            raise ValueError(f"no network has {self.depth=}, {self.width=}")
        if any(size < 1 or size % 2**self.depth for size in self.crop_shape):
            raise ValueError(f"crop shape {self.crop_shape} is not made of multiples of {2**self.depth}")


class NoduleNet(nn.Module):
    """A 3D convolutional classifier of crops, batch norm on the HU as its first layer.

    With the default configuration 222 220 parameters.

    Args:
        config: the shape of the network.
        generator: of the initial weights, on the CPU; without one they come from PyTorch's global generator.
    """

    def __init__(self, config: NoduleNetConfig | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config or NoduleNetConfig()
        widths = [self.config.width * 2**level for level in range(self.config.depth)]
        self.input_norm = nn.BatchNorm3d(1)
        self.blocks = nn.Sequential(*(_block(a, b) for a, b in zip([1, *widths], widths)))
        index, row, col = (size // 2**self.config.depth for size in self.config.crop_shape)
        self.head = nn.Linear(widths[-1] * index * row * col, 2)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Logits of the two classes.

        Args:
            crops: (B, 1, 32, 48, 48) float, HU clipped to [-1000, 1000]; not clipped here.

        Returns:
            (B, 2) float, before the softmax; class 1 is the nodule (or the malignant one).

        Raises:
            ValueError: on any other shape (unchecked while being exported or compiled).
        """
        if not torch.compiler.is_compiling() and crops.shape[1:] != (1, *self.config.crop_shape):
            wanted = ", ".join(str(size) for size in self.config.crop_shape)
            raise ValueError(f"crops have shape {tuple(crops.shape)}, not (B, 1, {wanted})")
        return self.head(self.blocks(self.input_norm(crops)).flatten(1))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv3d(outputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
    )


def load_published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights that the report's author published for the 3D classifiers; they fit `NoduleNet()`.

    Args:
        state: `torch.load(path, weights_only=True, map_location="cpu")["model_state"]`.

    Returns:
        the same tensors, not copied, under this module's names.

    Raises:
        ValueError: when a weight is missing, unknown or of another shape, such as those of another network.
    """
    return rename_published(state, NoduleNet(), _published_name, "a published 3D classifier")


def _published_name(name: str) -> str:
    part, rest = name.split(".", maxsplit=1)
    if part == "input_norm":
        return f"tail_batchnorm.{rest}"
    if part == "head":
        return f"head_linear.{rest}"
    level, layer, kind = rest.split(".")
    return f"block{int(level) + 1}.conv{int(layer) // 2 + 1}.{kind}"
