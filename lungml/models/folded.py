"""How does a trained U-Net answer without spending time on its batch norms?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, max_pool2d

from lungml.models.unet import UNet

Affine = tuple[torch.Tensor, torch.Tensor]  # scale and shift of each channel


class FoldedUNet:
    """A copy of a U-Net, for inference only, whose batch norms have moved into the convolutions behind them.

    It gives the U-Net's logits, summed in another order: a batch norm scales and shifts a picture, and a convolution of
    `scale * x + shift` is one of x with other weights and another bias. Only at the picture's border that bias differs,
    because zeros are put around the picture after the batch norm. Convolutions are left, and ReLUs in place. The input
    and the skip connections lie in memory that is kept from one call to the next: what the kernel fills with zeros page
    by page, whenever a large picture is made anew, took a third of the time.

    One instance serves one thread, and does not see it when the U-Net's weights change.

    Args:
        unet: in eval mode, on one device.
        dtype: of the convolutions and what lies between them; the input's batch norm and the result are float32.
    """

    @torch.inference_mode()
    def __init__(self, unet: UNet, dtype: torch.dtype = torch.float32) -> None:
        self.config = unet.config
        self._unet, self._dtype = unet, dtype
        self._averages = unet.config.pooling == "avg"
        self._input = _columns(_affine(unet.input_norm), torch.float32)
        self._down: list[_Block] = []
        norms: list[Affine] = []
        downs: list[Any] = list(unet.down)
        for block in downs:
            # Averages of what is scaled and shifted are averages scaled and shifted. Maxima are not.
            self._down.append(_Block(block, norms[-1] if norms and self._averages else None, dtype))
            norms.append(_affine(block[-1]))
        self._pooled = [_columns(norm, dtype) for norm in norms]
        self._up: list[tuple[Affine, Affine, _Block]] = []
        norm = norms[-1]
        ups: list[Any] = list(unet.up)
        for up, (scale, shift) in zip(ups, norms[-2::-1]):
            both = torch.cat([torch.ones_like(scale), scale]), torch.cat([torch.zeros_like(shift), shift])
            expand = _weight(up.expand.weight, dtype), up.expand.bias.to(dtype)
            self._up.append((_columns(norm, dtype), expand, _Block(up.block, both, dtype)))
            norm = _affine(up.block[-1])
        scale, shift = norm
        head, bias = unet.head.weight.double(), unet.head.bias
        assert bias is not None
        self._head = (
            _weight(head * scale[:, None, None], dtype),
            (bias + head[:, :, 0, 0] @ shift).to(dtype),
        )
        self._kept: dict[int, torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, slab: torch.Tensor) -> torch.Tensor:
        """Logits of the middle slice, as `UNet.forward` gives them.

        Args:
            slab: as there, in any layout of memory; left as it is.

        Returns:
            (B, 1, H, W) float32.
        """
        if min(slab.shape[2:]) <= self.config.multiple:
            return self._unet(slab)  # one pixel at the lowest resolution is border on both sides
        scale, shift = self._input
        x = torch.addcmul(shift, slab, scale, out=self._keep(0, slab.shape))
        joined: list[torch.Tensor] = []  # of each resolution but the lowest: what comes up and, behind it, the skip
        for level, block in enumerate(self._down):
            if level:
                x = self._pool(x, level - 1)
            x = block(x)
            if level < len(self._up):
                count, channels, height, width = x.shape
                joined.append(self._keep(1 + level, (count, 2 * channels, height, width)))
                joined[level][:, channels:] = x
        for (scale, shift), (weight, bias), block in self._up:
            both = joined.pop()
            x = conv_transpose2d(torch.addcmul(shift, x, scale, out=x), weight, bias, stride=2)
            both[:, : x.shape[1]] = x
            x = block(both)
        return conv2d(x, *self._head).float()

    def _pool(self, x: torch.Tensor, level: int) -> torch.Tensor:
        if self._averages:
            return avg_pool2d(x, 2)
        scale, shift = self._pooled[level]
        return max_pool2d(torch.addcmul(shift, x, scale), 2)

    def _keep(self, place: int, shape: tuple[int, ...]) -> torch.Tensor:
        """(B, C, H, W), channels-last, in memory that lasts; what it held is overwritten."""
        count, channels, height, width = shape
        size = count * channels * height * width
        kept = self._kept.get(place)
        if kept is None or len(kept) < size:
            kept = self._kept[place] = torch.empty(size, dtype=self._dtype, device=self._head[0].device)
        return kept[:size].view(count, height, width, channels).permute(0, 3, 1, 2)


class _Block:
    """Two convolutions of 3 x 3 with their ReLUs; the batch norm behind the second is left to whoever comes next."""

    def __init__(self, block: Any, before: Affine | None, dtype: torch.dtype) -> None:
        self._layers = [_Folded(block[0], before, dtype), _Folded(block[3], _affine(block[2]), dtype)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self._layers:
            x = layer(x)
        return x


class _Folded:
    """`relu(convolve(scale * x + shift))` of a convolution of 3 x 3, padded with one zero on each side."""

    def __init__(self, convolve: nn.Conv2d, before: Affine | None, dtype: torch.dtype) -> None:
        weight, bias = convolve.weight.double(), convolve.bias
        assert bias is not None
        self._edges = None
        if before:
            scale, shift = before
            # What the shift adds to a pixel of a picture of 3 x 3: in the corners, at the edges, in the middle.
            ones = shift.view(1, -1, 1, 1).expand(1, -1, 3, 3)
            added = conv2d(ones, weight, padding=1)[0]
            middle = added[:, 1, 1]
            bias = bias + middle
            added = (added - middle[:, None, None]).to(dtype)
            self._edges = added[:, 0, 1], added[:, 2, 1], added[:, 1, 0], added[:, 1, 2]
            # A corner gets what both of its edges add, and the rest.
            self._corners = [
                (row, col, added[:, row, col] - added[:, row, 1] - added[:, 1, col]) for row in (0, 2) for col in (0, 2)
            ]
            weight = weight * scale[:, None, None]
        self._weight, self._bias = _weight(weight, dtype), bias.to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = conv2d(x, self._weight, self._bias, padding=1)
        if self._edges:
            top, bottom, left, right = self._edges
            x[:, :, 0] += top[:, None]
            x[:, :, -1] += bottom[:, None]
            x[:, :, :, 0] += left[:, None]
            x[:, :, :, -1] += right[:, None]
            for row, col, rest in self._corners:
                x[:, :, -(row // 2), -(col // 2)] += rest
        return x.relu_()


def _affine(norm: nn.Module) -> Affine:
    """What a batch norm does outside training, as float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _columns(norm: Affine, dtype: torch.dtype) -> Affine:
    """Scale and shift to multiply and add to a (B, C, H, W)."""
    scale, shift = norm
    return scale[:, None, None].to(dtype), shift[:, None, None].to(dtype)


def _weight(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)
