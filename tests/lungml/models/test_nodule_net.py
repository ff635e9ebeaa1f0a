import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.export import Dim

from lungml.models.nodule_net import NoduleNet, NoduleNetConfig, load_published

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="LUNGML_REAL_DATA is not set")
SMALL = NoduleNetConfig(crop_shape=(16, 16, 16))


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
    config = NoduleNetConfig(crop_shape=(16, 32, 32), width=4)
    again = NoduleNetConfig(**json.loads(json.dumps(asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize("fields", [{"crop_shape": (32, 40, 48)}, {"depth": 0}, {"width": 0}])
def test_impossible_configs_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"crop shape|depth|width"):
        NoduleNetConfig(**fields)


def test_overfits_one_batch() -> None:
    model = seeded(SMALL)
    crops = some_crops(4, SMALL.crop_shape)
    target = torch.tensor([0, 1, 1, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(crops), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert torch.equal(model(crops).argmax(1), target)


def test_exports_with_a_free_batch() -> None:
    model = seeded(SMALL).eval()
    example = some_crops(2, SMALL.crop_shape)
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
