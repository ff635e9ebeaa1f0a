"""Which pixels of this slice belong to a nodule, given the slices around it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from lungml.models import rename_published
from lungml.models.first_layer import normed_blocks

Pooling = Literal["avg", "max"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of the network; JSON-able by `dataclasses.asdict`, rebuilt by `UNetConfig(**fields)`.

    Attributes:
        context_slices: slices on EACH side of the one that is segmented.
        depth: resolutions, the full one included.
        width: channels of the first resolution; they double at each next one.
        pooling: how the resolution is halved; the published weights were trained with "avg", though the
            report's text says max.
    """

    context_slices: int = 3
    depth: int = 3
    width: int = 16
    pooling: Pooling = "avg"

    def __post_init__(self) -> None:
        if self.context_slices < 0 or self.depth < 1 or self.width < 1:
            raise ValueError(f"no U-Net has {self.context_slices=}, {self.depth=}, {self.width=}")
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"unknown pooling {self.pooling!r}; choose one of {', '.join(get_args(Pooling))}")

    @property
    def channels(self) -> int:
        """Slices the network sees at once."""
        return 2 * self.context_slices + 1

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return 2 ** (self.depth - 1)

    @property
    def reach(self) -> int:
        """Pixels in plane beyond which nothing of the input changes a pixel's logit; 23 by default.

        Each block's two convolutions of 3 x 3 look two pixels further, at their own resolution; halving and doubling
        it rounds outwards.
        """
        furthest = 0
        for pixel in range(self.multiple):
            first = last = pixel
            for _ in range(self.depth - 1):  # from the logit down to the lowest resolution
                first, last = (first - 2) // 2, (last + 2) // 2
            first, last = first - 2, last + 2
            for _ in range(self.depth - 1):  # and up to the input; the way over a skip is shorter
                first, last = 2 * first - 2, 2 * last + 3
            furthest = max(furthest, pixel - first, last - pixel)
        return furthest


class UNet(nn.Module):
    """A small 2D U-Net over neighbouring slices as channels, batch norm on the HU as its first layer.

    With the default configuration 118 271 parameters.

    Args:
        config: the shape of the network.
        generator: of the initial weights, on the CPU; without one they come from PyTorch's global generator.
    """

    def __init__(self, config: UNetConfig | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config or UNetConfig()
        widths = [self.config.width * 2**level for level in range(self.config.depth)]
        self.input_norm = nn.BatchNorm2d(self.config.channels)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([self.config.channels, *widths], widths))
        self.pool = nn.AvgPool2d(2) if self.config.pooling == "avg" else nn.MaxPool2d(2)
        self.up = nn.ModuleList(_Up(below, here) for below, here in zip(widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv2d(widths[0], 1, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                # PyTorch counts fan_out along the first axis: a transposed convolution's INPUT channels.
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, slab: torch.Tensor) -> torch.Tensor:
        """Logits of the middle slice.

        Does not clip and does not pad: the caller pads an odd size, because padding in here would keep the
        network from being exported with free height and width.

        Args:
            slab: (B, 2 * context_slices + 1, H, W) float, HU clipped to [-1000, 1000]; H and W multiples of
                `config.multiple` (4 by default).

        Returns:
            (B, 1, H, W) float, before the sigmoid.

        Raises:
            ValueError: on any other shape (unchecked while being exported or compiled).
        """
        if not torch.compiler.is_compiling():
            self._check(slab)
        x = normed_blocks(slab, self.input_norm, nn.Sequential(self.down[0]), apart=False)
        skips = [x]
        for block in self.down[1:]:
            x = block(self.pool(x))
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1]):
            x = up(x, skip)
        return self.head(x)

    def _check(self, slab: torch.Tensor) -> None:
        channels, multiple = self.config.channels, self.config.multiple
        if slab.ndim != 4 or slab.shape[1] != channels:
            raise ValueError(f"slab has shape {tuple(slab.shape)}, not (B, {channels}, H, W)")
        if not all(slab.shape[2:]) or any(size % multiple for size in slab.shape[2:]):
            raise ValueError(f"slab is {slab.shape[2]} x {slab.shape[3]} in plane; pad it to multiples of {multiple}")


class _Up(nn.Module):
    """Double the resolution, put the skip connection behind, convolve."""

    def __init__(self, below: int, here: int) -> None:
        super().__init__()
        self.expand = nn.ConvTranspose2d(below, here, kernel_size=2, stride=2)
        self.block = _block(2 * here, here)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.block(torch.cat([self.expand(x), skip], dim=1))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(outputs),
        nn.Conv2d(outputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(outputs),
    )


def load_published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights that the report's author published; they fit `UNet()`.

    Args:
        state: `torch.load(path, weights_only=True, map_location="cpu")["model_state"]`.

    Returns:
        the same tensors, not copied, under this module's names.

    Raises:
        ValueError: when a weight is missing, unknown or of another shape, such as those of another network.
    """
    return rename_published(state, UNet(), _published_name, "the published U-Net")


def _published_name(name: str) -> str:
    part, rest = name.split(".", maxsplit=1)
    if part == "input_norm":
        return f"input_batchnorm.{rest}"
    if part == "head":
        return f"unet.last.{rest}"
    level, rest = rest.split(".", maxsplit=1)
    if part == "down":
        return f"unet.down_path.{level}.block.{rest}"
    if rest.startswith("expand."):
        return f"unet.up_path.{level}.up.{rest.removeprefix('expand.')}"
    return f"unet.up_path.{level}.conv_block.{rest}"
