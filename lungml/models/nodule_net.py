"""Is this crop a nodule (or, trained on other labels, a malignant one)?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lungml.models import rename_published
from lungml.models.first_layer import normed_blocks

VOXEL_MM = (1.25, 0.7, 0.7)  # taken for the size of a voxel where it is not known
FEWEST_RAYS = 16  # below that quantiles over the rays say nothing
RAY_STEP_MM = 0.5
RAY_THRESHOLDS_HU = (-650.0, -500.0, -350.0, -200.0)  # from ground glass to solid
RAY_SOFTNESS_HU = 80.0
RAY_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
RAY_HIDDEN = 32  # features made of the measures, beside these
GOLDEN_ANGLE = math.pi * (1 + math.sqrt(5))  # of a Fibonacci sphere


@dataclass(frozen=True, kw_only=True)
class NoduleNetConfig:
    """The shape of the network: JSON-able by `dataclasses.asdict`, rebuilt by `NoduleNetConfig(**fields)`.

    Attributes:
        crop_shape: (index, row, col) voxels, each a multiple of 2**depth.
        depth: blocks; each halves the crop.
        width: channels of the first block; they double at each next one.
        spacing_mm: (index, row, col) of the crops, which are then resampled to it; None takes voxels as they are.
        norm: "batch" normalises after every convolution, "none" nowhere but at the input.
        head: "flatten" gives the last block's voxels to the linear layer, "pool" each channel's mean and maximum.
        dropout: probability of leaving out a feature before the linear layer.
        rays: directions from the crop's centre along which size, border and texture are measured, see `Rays`.

    Raises:
        ValueError: when no network can have this shape.
    """

    crop_shape: tuple[int, int, int] = (32, 48, 48)
    depth: int = 4
    width: int = 8
    spacing_mm: tuple[float, float, float] | None = None
    norm: Literal["none", "batch"] = "none"
    head: Literal["flatten", "pool"] = "flatten"
    dropout: float = 0.0
    rays: int = 0

    def __post_init__(self) -> None:
        index, row, col = self.crop_shape
        object.__setattr__(self, "crop_shape", (index, row, col))  # JSON gives a list back
        if self.spacing_mm is not None:
            object.__setattr__(self, "spacing_mm", tuple(self.spacing_mm))
            if len(self.spacing_mm) != 3 or not all(0 < step < float("inf") for step in self.spacing_mm):
                raise ValueError(f"spacing_mm {self.spacing_mm} is not three positive numbers")
        if self.norm not in ("none", "batch") or self.head not in ("flatten", "pool"):
            raise ValueError(f"no network has {self.norm=}, {self.head=}")
        if not 0 <= self.dropout < 1 or (self.rays and self.rays < FEWEST_RAYS):
            raise ValueError(f"no network has {self.dropout=}, {self.rays=}")
        if self.depth < 1 or self.width < 1:
            raise ValueError(f"no network has {self.depth=}, {self.width=}")
        if any(size < 1 or size % 2**self.depth for size in self.crop_shape):
            raise ValueError(f"crop shape {self.crop_shape} is not made of multiples of {2**self.depth}")
        if self.rays and _reach_mm(self) < RAY_STEP_MM:
            raise ValueError(f"crop shape {self.crop_shape} has no room for rays")


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
        self.blocks = nn.Sequential(*(_block(a, b, self.config.norm) for a, b in zip([1, *widths], widths)))
        index, row, col = (size // 2**self.config.depth for size in self.config.crop_shape)
        features = widths[-1] * (index * row * col if self.config.head == "flatten" else 2)
        self.rays = Rays(self.config) if self.config.rays else None
        if self.rays:
            features += self.rays.features
        self.dropout = nn.Dropout(self.config.dropout)
        self.head = nn.Linear(features, 2)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.config.norm != "none" or self.config.head != "flatten" or self.config.rays:
            # The report's way gives logits of 10 and more to begin with; small steps take long to undo them.
            nn.init.normal_(self.head.weight, std=0.01, generator=generator)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Logits of the two classes.

        Args:
            crops: (B, 1, *config.crop_shape) float, HU clipped to [-1000, 1000]; not clipped here.

        Returns:
            (B, 2) float, before the softmax; class 1 is the nodule (or the malignant one).

        Raises:
            ValueError: on any other shape (unchecked while being exported or compiled).
        """
        if not torch.compiler.is_compiling() and crops.shape[1:] != (1, *self.config.crop_shape):
            wanted = ", ".join(str(size) for size in self.config.crop_shape)
            raise ValueError(f"crops have shape {tuple(crops.shape)}, not (B, 1, {wanted})")
        seen = normed_blocks(crops, self.input_norm, self.blocks, apart=self.config.norm == "none")
        features = seen.flatten(1) if self.config.head == "flatten" else _pooled(seen)
        if self.rays:
            features = torch.cat([features, self.rays(crops)], dim=1)
        return self.head(self.dropout(features))


class Rays(nn.Module):
    """How far is it from the centre to the border of what lies there, in all directions?

    Along each ray the HU are turned into a soft "still inside" at several thresholds; its sum is a radius. Quantiles
    over the rays tell the size, whatever vessel or wall one side touches, and how uneven the border is. Mean and
    spread of the HU inside tell the texture. A convolution of 3 x 3 x 3 has to be taught all of that.

    Args:
        config: `rays` directions, evenly spread, out to half the crop's shortest side.
    """

    index: torch.Tensor  # (directions, steps) int64, positions in a flattened crop

    def __init__(self, config: NoduleNetConfig) -> None:
        super().__init__()
        spacing = config.spacing_mm or VOXEL_MM
        number = torch.arange(config.rays) + 0.5
        polar, around = torch.arccos(1 - 2 * number / config.rays), GOLDEN_ANGLE * number
        directions = torch.stack([polar.cos(), polar.sin() * around.cos(), polar.sin() * around.sin()], dim=1)
        away = torch.arange(RAY_STEP_MM / 2, _reach_mm(config), RAY_STEP_MM)
        index = torch.zeros(len(directions), len(away), dtype=torch.long)
        for axis, (size, mm) in enumerate(zip(config.crop_shape, spacing)):
            voxel = (directions[:, axis, None] * away / mm + (size - 1) / 2).round().long().clamp(0, size - 1)
            index = index * size + voxel
        # Derived from the configuration, so no part of the weights.
        self.register_buffer("index", index, persistent=False)
        measured = len(RAY_THRESHOLDS_HU) * (len(RAY_QUANTILES) + 6)
        self.norm = nn.BatchNorm1d(measured)
        self.mix = nn.Linear(measured, RAY_HIDDEN)
        self.features = measured + RAY_HIDDEN

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W) float HU to (B, features) float."""
        with torch.autocast(crops.device.type, enabled=False):  # squares of HU need more than half precision
            seen = crops.float().flatten(1)[:, self.index.flatten()].unflatten(1, self.index.shape)
            measured = torch.cat([_measured(seen, threshold) for threshold in RAY_THRESHOLDS_HU], dim=1)
            measured = self.norm(measured)
            return torch.cat([measured, torch.relu(self.mix(measured))], dim=1)


def _reach_mm(config: NoduleNetConfig) -> float:
    spacing = config.spacing_mm or VOXEL_MM
    return min(size * mm for size, mm in zip(config.crop_shape, spacing)) / 2 - max(spacing)


def _measured(seen: torch.Tensor, threshold_hu: float) -> torch.Tensor:
    """(B, directions, steps) HU to (B, measures): logarithms of radii in steps, their ratios, volume, and HU inside."""
    inside = torch.sigmoid((seen - threshold_hu) / RAY_SOFTNESS_HU).cumprod(2)
    radii = inside.sum(2).sort(dim=1).values
    last = radii.shape[1] - 1
    quantiles = radii[:, [round(last * share) for share in RAY_QUANTILES]]
    middle = quantiles[:, len(RAY_QUANTILES) // 2, None] + 1
    uneven = torch.cat([quantiles[:, 2:3], quantiles[:, -3:-2], radii[:, last // 4 : 3 * last // 4].std(1)[:, None]], 1)
    volume = torch.log((radii**3).mean(1, keepdim=True) + 1) / 3
    weight = inside.sum((1, 2)).clamp(min=1e-3)
    mean = (inside * seen).sum((1, 2)) / weight
    spread = ((inside * seen**2).sum((1, 2)) / weight - mean**2).clamp(min=1).sqrt()
    texture = torch.stack([mean, spread], dim=1) / 100
    return torch.cat([torch.log(quantiles + 1), uneven / middle, volume, texture], dim=1)


def _pooled(seen: torch.Tensor) -> torch.Tensor:
    return torch.cat([seen.mean((2, 3, 4)), seen.amax((2, 3, 4))], dim=1)


def _block(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv3d(channels, outputs, kernel_size=3, padding=1))
        if norm == "batch":
            layers.append(nn.BatchNorm3d(outputs))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.MaxPool3d(2))


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
