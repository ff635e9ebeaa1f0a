from copy import deepcopy

import pytest
import torch
from torch import nn

from lungml.models.first_layer import PIECE, learns, normed_blocks


def layers(axes: int) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A norm of 2 channels with odd parameters, a convolution, and pictures in HU."""
    torch.manual_seed(axes)
    norm = (nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d)(2)
    convolve = (nn.Conv2d if axes == 2 else nn.Conv3d)(2, 3, kernel_size=3, padding=1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0]))
        norm.bias.copy_(torch.tensor([0.3, 0.7]))
    return norm, convolve, torch.randn(4, 2, *[6] * axes) * 300 - 500


def convolved(pictures: torch.Tensor, norm: nn.Module, convolve: nn.Module) -> torch.Tensor:
    """Through blocks that consist of the convolution."""
    return normed_blocks(pictures, norm, nn.Sequential(nn.Sequential(convolve)), apart=False)


@pytest.mark.parametrize("axes", [2, 3])
def test_outputs_gradients_and_statistics_are_those_of_the_layers(axes: int) -> None:
    norm, convolve, pictures = layers(axes)
    plain_norm, plain_convolve = deepcopy(norm), deepcopy(convolve)
    for _ in range(2):  # statistics are running: one step would not show a wrong momentum
        ours = convolved(pictures, norm, convolve)
        plain = plain_convolve(plain_norm(pictures))
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    (ours**2).mean().backward()
    (plain**2).mean().backward()
    for mine, theirs in ((norm, plain_norm), (convolve, plain_convolve)):
        for one, other in zip(mine.parameters(), theirs.parameters()):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
    for name, value in plain_norm.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value)


def test_the_pictures_need_no_gradient() -> None:
    norm, convolve, pictures = layers(3)
    assert learns(pictures, norm)
    joined = convolved(pictures, norm, convolve).grad_fn
    assert joined is not None
    first = joined.next_functions[0][0]
    assert first.next_functions[0][0] is None  # of the convolution's input; its weight's comes second


@pytest.mark.parametrize("why", ["eval", "no_grad", "wanted"])
def test_else_the_layers_themselves_are_called(why: str) -> None:
    norm, convolve, pictures = layers(2)
    if why == "eval":
        norm.eval()
    pictures.requires_grad_(why == "wanted")
    with torch.set_grad_enabled(why != "no_grad"):
        assert not learns(pictures, norm)
        assert torch.equal(convolved(pictures, deepcopy(norm), convolve), convolve(norm(pictures)))


@pytest.mark.parametrize(("samples", "apart"), [(PIECE + 3, True), (PIECE + 3, False), (2, True)])
def test_blocks_in_pieces_learn_as_the_layers_do(samples: int, apart: bool) -> None:
    norm, convolve, _ = layers(2)
    block = nn.Sequential(convolve, nn.ReLU(), nn.MaxPool2d(2))
    if not apart:
        block.append(nn.BatchNorm2d(3))
    blocks = nn.Sequential(block, nn.Sequential(nn.Conv2d(3, 1, kernel_size=3)))
    pictures = torch.randn(samples, 2, 8, 8) * 300 - 500
    plain_norm, plain_blocks = deepcopy(norm), deepcopy(blocks)
    ours, plain = normed_blocks(pictures, norm, blocks, apart=apart), plain_blocks(plain_norm(pictures))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    (ours**2).mean().backward()
    (plain**2).mean().backward()
    for mine, theirs in ((norm, plain_norm), (blocks, plain_blocks)):
        for one, other in zip(mine.parameters(), theirs.parameters()):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
