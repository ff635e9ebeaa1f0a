import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.export import Dim

from lungml.losses import report_segmentation_loss
from lungml.models.unet import UNet, UNetConfig, load_published

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="LUNGML_REAL_DATA is not set")


def seeded(config: UNetConfig | None = None, seed: int = 0) -> UNet:
    return UNet(config, generator=torch.Generator().manual_seed(seed))


def some_slab(batch: int = 2, rows: int = 16, cols: int = 24) -> torch.Tensor:
    return torch.randn(batch, 7, rows, cols, generator=torch.Generator().manual_seed(1)) * 300 - 500


def test_shape_and_parameter_count() -> None:
    model = seeded()
    assert sum(p.numel() for p in model.parameters()) == 118_271
    assert model(some_slab()).shape == (2, 1, 16, 24)


def test_pooling_is_a_choice() -> None:
    default, average, maximum = (seeded(c).eval() for c in (None, UNetConfig(), UNetConfig(pooling="max")))
    assert torch.equal(default(some_slab()), average(some_slab()))
    assert not torch.equal(maximum(some_slab()), average(some_slab()))
    assert sum(p.numel() for p in maximum.parameters()) == 118_271


def test_an_independent_forward_pass_gives_the_same_logits() -> None:
    # The specification written out as one expression: average pooling, [up, skip], 1x1 last.
    model = seeded().eval()
    slab = some_slab()
    pool = torch.nn.functional.avg_pool2d
    first = model.down[0](model.input_norm(slab))
    second = model.down[1](pool(first, 2))
    third = model.down[2](pool(second, 2))
    back = model.up[0].block(torch.cat([model.up[0].expand(third), second], 1))
    back = model.up[1].block(torch.cat([model.up[1].expand(back), first], 1))
    torch.testing.assert_close(model(slab), model.head(back))


def test_initial_weights_come_from_the_generator() -> None:
    torch.manual_seed(1)
    one = seeded(seed=3).state_dict()
    torch.manual_seed(2)
    two, other = seeded(seed=3).state_dict(), seeded(seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_initial_weights_are_kaiming_normal_with_zero_biases() -> None:
    model = seeded()
    for conv in (model.down[2][3], model.up[0].expand):
        fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel()
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert not conv.bias.any()
    assert not model.head.bias.any()


@pytest.mark.parametrize("shape", [(1, 7, 18, 16), (1, 7, 16, 18), (1, 6, 16, 16), (7, 16, 16), (1, 7, 0, 16)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="slab"):
        seeded()(torch.zeros(shape))


def test_the_smallest_picture_passes() -> None:
    assert seeded().eval()(torch.zeros(1, 7, 4, 4)).shape == (1, 1, 4, 4)


def test_config_survives_json() -> None:
    config = UNetConfig(context_slices=2, depth=4, width=8, pooling="max")
    assert UNetConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert seeded(config)(torch.zeros(2, 5, 16, 16)).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("fields", [{"pooling": "median"}, {"depth": 0}, {"width": 0}, {"context_slices": -1}])
def test_impossible_configs_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        UNetConfig(**fields)


def test_overfits_one_batch() -> None:
    model = seeded()
    slab = torch.full((2, 7, 16, 16), -800.0)
    target = torch.zeros(2, 1, 16, 16)
    for sample, (row, col) in enumerate([(3, 4), (9, 8)]):
        slab[sample, 2:5, row : row + 5, col : col + 5] = 40
        target[sample, 0, row : row + 5, col : col + 5] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = report_segmentation_loss(model(slab), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert torch.equal(model(slab) > 0, target > 0)


def test_exports_with_free_batch_height_and_width() -> None:
    model = seeded().eval()
    height, width = 4 * Dim("height", min=1, max=512), 4 * Dim("width", min=1, max=512)
    exported = torch.export.export(
        model, (some_slab(),), dynamic_shapes=({0: Dim("batch", min=1), 2: height, 3: width},)
    ).module()
    for slab in (some_slab(), some_slab(3, 32, 8), some_slab(1, 20, 20)):
        torch.testing.assert_close(exported(slab), model(slab))


def published_state(name: str) -> dict[str, torch.Tensor]:
    path = Path(REAL_DATA or "") / "report-weights" / f"{name}.state"
    return torch.load(path, weights_only=True, map_location="cpu")["model_state"]


@pytest.mark.real
@needs_real_data
def test_published_weights_load() -> None:
    model = UNet()
    model.load_state_dict(load_published(published_state("segmentation")))
    # Air everywhere, soft tissue in the middle: trained weights mark the middle and nothing in the corner.
    slab = torch.full((1, 7, 64, 64), -850.0)
    slab[:, 1:6, 28:36, 28:36] = 30
    probs = model.eval()(slab).sigmoid()
    assert probs[0, 0, 32, 32] > 0.5
    assert probs[0, 0, :8, :8].max() < 0.5


@pytest.mark.real
@needs_real_data
@pytest.mark.parametrize("name", ["nodule", "malignancy-scratch", "malignancy-finetuned"])
def test_published_weights_of_another_network_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^not the published U-Net: [^\n]+$"):
        load_published(published_state(name))


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="not the published U-Net"):
        load_published({})
    with pytest.raises(ValueError, match="not the published U-Net"):
        load_published(seeded().state_dict())
