"""How does a network learn from HU without a gradient of the HU themselves?"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, conv3d

PIECE = 8  # crops: their activations stay below the 32 MB from which on malloc asks the kernel for zeroed pages


def learns(pictures: torch.Tensor, norm: nn.Module) -> bool:
    """Whether `normed_blocks` pays: a training step of a learning batch norm, on given pictures."""
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and not (pictures.is_cuda and torch.is_autocast_enabled("cuda"))  # bfloat16 has no fast kernel for few channels
        and not pictures.requires_grad
        and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d)
        and norm.training
        and norm.affine
    )


def fold(pictures: torch.Tensor, norm: nn.Module, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move what a batch norm learns behind the pictures, into the weights of the convolution that follows.

    A convolution of `gamma * x + beta`, padded with zeros, is one of x with `gamma * weight`, plus one of a picture of
    ones with `beta * weight`. Nothing that learns is then left in front of the pictures, and PyTorch leaves out their
    gradient: of one channel it takes as long as half of the classifier's step on a CPU, a third on a GPU. Sums come in
    another order, so the results are equal up to rounding. The running statistics are updated as the layer itself
    updates them.

    Args:
        pictures: (B, C, ...) float.
        norm: a batch norm in training mode.
        weight: (outputs, C, ...) of the convolution, padded with zeros.

    Returns:
        pictures (B, C + 1, ...), normed and with ones behind, without gradient; weight (outputs, C + 1, ...).
    """
    assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d)
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = momentum if momentum is not None else 1 / float(norm.num_batches_tracked)
    normed = batch_norm(pictures, norm.running_mean, norm.running_var, None, None, True, momentum or 0.0, norm.eps)
    layout = torch.channels_last_3d if pictures.ndim == 5 else torch.channels_last
    with_ones = torch.cat([normed, torch.ones_like(normed[:, :1])], dim=1).contiguous(memory_format=layout)
    shape = (1, -1, *[1] * (pictures.ndim - 2))
    shifted = (weight * norm.bias.view(shape)).sum(1, keepdim=True)
    return with_ones, torch.cat([weight * norm.weight.view(shape), shifted], dim=1)


def normed_blocks(pictures: torch.Tensor, norm: nn.Module, blocks: nn.Sequential, *, apart: bool) -> torch.Tensor:
    """`blocks(norm(pictures))`, without the pictures' gradient where `learns`; see `fold`.

    Args:
        pictures: (B, C, ...) float.
        norm: a batch norm, over the whole batch in any case.
        blocks: sequences of layers, the very first of which is a convolution of stride 1, padded with zeros.
        apart: whether no layer of the blocks mixes samples. On a CPU they then go through in pieces of `PIECE`, so that
            large batches do not spend a quarter of their time on fresh memory.
    """
    if not learns(pictures, norm):
        return blocks(norm(pictures))
    first, *others = blocks[0].children()
    assert isinstance(first, nn.Conv2d | nn.Conv3d)
    with_ones, weight = fold(pictures, norm, first.weight)
    function = conv3d if pictures.ndim == 5 else conv2d
    seen = []
    for part in with_ones.split(PIECE if apart and pictures.device.type == "cpu" else len(pictures)):
        part = function(part, weight, first.bias, padding=first.padding)
        for layer in others:
            part = layer(part)
        seen.append(blocks[1:](part))
    return torch.cat(seen)
