import pytest
import torch
from torch import nn

from lungml.models.folded import FoldedUNet
from lungml.models.unet import UNet, UNetConfig

CONFIGS = [
    UNetConfig(),
    UNetConfig(pooling="max"),
    UNetConfig(depth=1, width=4),
    UNetConfig(depth=2, pooling="max", width=5),
    UNetConfig(depth=4, width=4, context_slices=1),
    UNetConfig(context_slices=0),
]


def trained(config: UNetConfig, seed: int = 0) -> UNet:
    """Batch norms that scale by either sign, shift, and expect other means: what folding could get wrong."""
    generator = torch.Generator().manual_seed(seed)
    net = UNet(config, generator=generator).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight.data, layer.bias.data, layer.running_mean):
                values.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    net.input_norm.running_mean -= 500
    net.input_norm.running_var *= 1e5
    return net


def slab(net: UNet, height: int, width: int, count: int = 2) -> torch.Tensor:
    shape = (count, net.config.channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 400 - 500


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("sides", [(1, 5), (2, 1), (2, 3), (4, 7)], ids=str)
def test_the_logits_are_the_u_nets_at_the_border_too(config: UNetConfig, sides: tuple[int, int]) -> None:
    net = trained(config)
    seen = slab(net, *(side * config.multiple for side in sides))
    with torch.inference_mode():
        wanted = net(seen)
        torch.testing.assert_close(FoldedUNet(net)(seen), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


def test_the_border_would_show_a_shift_that_is_not_put_right() -> None:
    # Or the test above could not fail: the shifts are large beside its tolerance.
    net = trained(UNetConfig())
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.bias.data += 3
    seen = slab(net, 32, 32)
    folded = FoldedUNet(net)
    for block in (*folded._down, *(block for _, _, block in folded._up)):
        for layer in block._layers:
            layer._edges = None
    with torch.inference_mode():
        off = (folded(seen) - net(seen)).abs()
    assert off[:, :, 0].max() > 1


def test_what_it_keeps_from_one_call_to_the_next_changes_no_answer() -> None:
    net = trained(UNetConfig())
    folded = FoldedUNet(net)
    small, large = slab(net, 16, 24, count=1), slab(net, 48, 40, count=3)
    first = folded(small)
    folded(large)
    second = folded(small)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()
    torch.testing.assert_close(folded(large), FoldedUNet(net)(large))


def test_the_slab_and_the_u_net_stay_as_they_are_in_any_layout() -> None:
    net = trained(UNetConfig())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    planes = slab(net, 16, 24, count=1)[0]
    longer = torch.cat([planes, planes[:2]])
    views = longer.unfold(0, 7, 1).permute(0, 3, 1, 2)  # three slabs that share their planes
    copy = longer.clone()
    with torch.inference_mode():
        torch.testing.assert_close(FoldedUNet(net)(views), net(views.contiguous()), rtol=1e-4, atol=1e-3)
    assert torch.equal(longer, copy)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_bfloat16_is_near_and_gives_float32() -> None:
    net = trained(UNetConfig())
    seen = slab(net, 32, 32)
    with torch.inference_mode():
        wanted = net(seen)
    found = FoldedUNet(net, torch.bfloat16)(seen)
    assert found.dtype == torch.float32
    off = (found - wanted).abs()
    assert 0 < float(off.mean()) < 0.01 * float(wanted.std())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_pixel_is_changed_from_within_reach_and_from_no_further(config: UNetConfig) -> None:
    net = trained(config)
    side = 4 * config.multiple + 2 * config.reach
    side += -side % config.multiple
    seen = slab(net, side, side, count=1).requires_grad_()
    furthest = 0
    for offset in range(config.multiple):  # how a pixel lies in its block of the lowest resolution
        row, col = side // 2 + offset, side // 2 - offset
        (gradient,) = torch.autograd.grad(net(seen)[0, 0, row, col], seen)
        rows, cols = gradient[0].abs().sum(0).nonzero(as_tuple=True)
        furthest = max(furthest, int((rows - row).abs().max()), int((cols - col).abs().max()))
    if config.pooling == "avg":
        assert furthest == config.reach
    assert furthest <= config.reach  # of the pixels under a maximum most have no part in it


def test_the_reach_of_the_published_u_net() -> None:
    # Down: 2, then halved; 2 and halved; 2 at the lowest resolution; doubled and 2; doubled and 2. 20 and roundings.
    assert UNetConfig().reach == 23
    assert UNetConfig(depth=1).reach == 2
