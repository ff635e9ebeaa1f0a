import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.export import Dim

from lungml.models.nodule_net import RAY_QUANTILES, NoduleNet, NoduleNetConfig, Rays, _measured, load_published

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="LUNGML_REAL_DATA is not set")
SMALL = NoduleNetConfig(crop_shape=(16, 16, 16))


MEASURING = NoduleNetConfig(
    crop_shape=(16, 16, 16), spacing_mm=(1.0, 1.0, 1.0), norm="batch", head="pool", dropout=0.3, rays=32
)


def seeded(config: NoduleNetConfig | None = None, seed: int = 0) -> NoduleNet:
    return NoduleNet(config, generator=torch.Generator().manual_seed(seed))


def some_crops(batch: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(batch, 1, *shape, generator=torch.Generator().manual_seed(1)) * 300 - 500


def test_shape_and_parameter_count() -> None:
    model = seeded()
    assert sum(p.numel() for p in model.parameters()) == 222_220
    assert model.head.in_features == 1152
    assert model(some_crops(2, (32, 48, 48))).shape == (2, 2)


def test_initial_weights_come_from_the_generator() -> None:
    torch.manual_seed(1)
    one = seeded(seed=3).state_dict()
    torch.manual_seed(2)
    two, other = seeded(seed=3).state_dict(), seeded(seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_initial_weights_are_kaiming_normal_with_zero_biases() -> None:
    model = seeded()
    conv = model.blocks[3][2]
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 27)) ** 0.5, rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(1.0, rel=0.05)  # fan_out is the two classes
    assert not conv.bias.any()
    assert not model.head.bias.any()


@pytest.mark.parametrize("shape", [(1, 1, 16, 48, 48), (1, 2, 32, 48, 48), (1, 32, 48, 48)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="crops have shape"):
        seeded()(torch.zeros(shape))


def test_config_survives_json() -> None:
    config = NoduleNetConfig(crop_shape=(16, 32, 32), width=4, spacing_mm=(1.0, 0.5, 0.5), rays=32)
    again = NoduleNetConfig(**json.loads(json.dumps(asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_shape": (32, 40, 48)},
        {"depth": 0},
        {"width": 0},
        {"spacing_mm": (1.0, 0.0, 1.0)},
        {"norm": "layer"},
        {"head": "mean"},
        {"dropout": 1.0},
        {"rays": 3},
        {"rays": 32, "crop_shape": (16, 16, 16), "spacing_mm": (0.05, 0.05, 0.05)},
    ],
)
def test_impossible_configs_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"crop shape|depth|width|spacing_mm|norm|head|dropout|rays"):
        NoduleNetConfig(**fields)


def test_the_published_architecture_keeps_its_names() -> None:
    blocks = [f"blocks.{level}.{layer}.{kind}" for level in range(4) for layer in (0, 2) for kind in ("weight", "bias")]
    norm = [f"input_norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert set(seeded().state_dict()) == {*norm, *blocks, "head.weight", "head.bias"}


def test_measures_along_rays_by_hand() -> None:
    # Half of the rays leave after 8 steps, half after 4: far above every threshold inside, far below outside.
    seen = torch.full((1, 32, 12), -5000.0)
    seen[:, ::2, :8] = seen[:, 1::2, :4] = 5000.0
    measured = _measured(seen, -350.0)[0]
    radii = measured[: len(RAY_QUANTILES)].exp() - 1
    torch.testing.assert_close(radii, torch.tensor([4.0, 4, 4, 8, 8, 8, 8]))
    assert measured[-3].item() == pytest.approx(torch.log(torch.tensor((4**3 + 8**3) / 2 + 1)).item() / 3)
    assert measured[-2:].tolist() == pytest.approx([50, 0.01])  # mean and spread inside, in 100 HU


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 0.8, 0.8)])
def test_rays_find_a_ball_in_the_middle_whichever_way_it_is_mirrored(spacing: tuple[float, float, float]) -> None:
    config = NoduleNetConfig(crop_shape=(32, 32, 32), spacing_mm=spacing, rays=96)
    rays = Rays(config)
    squared = sum(
        (((torch.arange(32) - 15.5) * mm) ** 2).view([-1 if axis == own else 1 for axis in range(3)])
        for own, mm in enumerate(spacing)
    )
    ball = torch.where(squared <= 6.0**2, 5000.0, -5000.0)[None]
    seen = ball.flatten(1)[:, rays.index.flatten()].unflatten(1, rays.index.shape)
    middle = _measured(seen, -350.0)[0, 3].exp() - 1
    assert middle.item() * 0.5 == pytest.approx(6.0, abs=0.5)  # steps of half a mm
    crops = some_crops(2, (32, 32, 32)) + ball[None]
    model = seeded(config).eval()
    torch.testing.assert_close(rays.eval()(crops)[:, 1].shape, torch.Size([2]))
    assert model(crops).shape == (2, 2)


def test_what_rays_measure_is_no_part_of_the_weights() -> None:
    names = {name for name in seeded(MEASURING).state_dict() if name.startswith("rays.")}
    norm = {f"rays.norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert names == {*norm, "rays.mix.weight", "rays.mix.bias"}


@pytest.mark.parametrize("config", [SMALL, MEASURING])
def test_overfits_one_batch(config: NoduleNetConfig) -> None:
    model = seeded(config)
    crops = some_crops(4, config.crop_shape)
    target = torch.tensor([0, 1, 1, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(crops), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert torch.equal(model(crops).argmax(1), target)


@pytest.mark.parametrize("config", [SMALL, MEASURING])
def test_exports_with_a_free_batch(config: NoduleNetConfig) -> None:
    model = seeded(config).eval()
    example = some_crops(2, config.crop_shape)
    exported = torch.export.export(model, (example,), dynamic_shapes=({0: Dim("batch", min=1)},)).module()
    for crops in (example, some_crops(5, SMALL.crop_shape), some_crops(1, SMALL.crop_shape)):
        torch.testing.assert_close(exported(crops), model(crops))


def published_state(name: str) -> dict[str, torch.Tensor]:
    path = Path(REAL_DATA or "") / "report-weights" / f"{name}.state"
    return torch.load(path, weights_only=True, map_location="cpu")["model_state"]


@pytest.mark.real
@needs_real_data
@pytest.mark.parametrize("name", ["nodule", "malignancy-scratch", "malignancy-finetuned"])
def test_published_weights_load_and_compute_what_their_names_say(name: str) -> None:
    state = published_state(name)
    model = NoduleNet()
    model.load_state_dict(load_published(state))
    crops = some_crops(2, (32, 48, 48)).clamp(-1000, 1000)
    x = torch.nn.functional.batch_norm(
        crops,
        *(state[f"tail_batchnorm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")),
    )
    for block in range(1, 5):
        for conv in (1, 2):
            weight, bias = (state[f"block{block}.conv{conv}.{part}"] for part in ("weight", "bias"))
            x = torch.nn.functional.conv3d(x, weight, bias, padding=1).relu()
        x = torch.nn.functional.max_pool3d(x, 2)
    logits = x.flatten(1) @ state["head_linear.weight"].T + state["head_linear.bias"]
    torch.testing.assert_close(model.eval()(crops), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.real
@needs_real_data
def test_published_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^not a published 3D classifier: [^\n]+$"):
        load_published(published_state("segmentation"))


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="not a published 3D classifier"):
        load_published({})
    with pytest.raises(ValueError, match="not a published 3D classifier"):
        load_published(seeded().state_dict())
