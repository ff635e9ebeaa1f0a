import numpy as np
import pytest
import torch

from lungml.classify import CROPS_PER_BATCH, classify
from lungml.geometry import Grid
from lungml.inference import InferenceSettings
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig

GRID = Grid(shape_irc=(60, 120, 120), spacing_xyz=(0.7, 0.8, 2.0), origin_xyz=(-10, 5, 3))


class Mean(NoduleNet):
    """Says how bright a crop's middle is."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        middle = crops[:, 0, 16, 24, 24] / 100
        return torch.stack([torch.zeros_like(middle), middle], dim=1)


class Corner(NoduleNet):
    """Says yes, surely, when the crop's first voxel is bright."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        first = crops[:, 0, 0, 0, 0]
        return torch.stack([-first, first], dim=1)


class Box(NoduleNet):
    """Keeps what it was shown."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.seen = crops.clone()
        return torch.zeros(len(crops), 2)


def random_net(seed: int = 0, config: NoduleNetConfig | None = None) -> NoduleNet:
    net = NoduleNet(config, generator=torch.Generator().manual_seed(seed)).eval()
    net.input_norm.running_mean.fill_(-500)
    net.input_norm.running_var.fill_(400**2)
    return net


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(-500, 300, shape).astype(np.int16)


def alone(crop: np.ndarray, net: NoduleNet) -> float:
    """The probability of one crop, as one would write it down."""
    with torch.inference_mode():
        logits = net(torch.from_numpy(crop.clip(-1000, 1000)).float()[None, None])
    return float(torch.softmax(logits.double(), dim=1)[0, 1])


def test_halves_round_to_the_even_voxel_as_in_the_published_results() -> None:
    hu = np.full(GRID.shape_irc, -800, np.int16)
    hu[20, 34, 40] = 200
    probs = classify(hu, np.array([[20.0, 34.5, 40.0], [20.0, 33.5, 40.0], [20.0, 35.5, 40.0]]), (Mean().eval(),))
    assert (probs[0] > 0.5).tolist() == [True, True, False]


@pytest.mark.parametrize("count", [1, CROPS_PER_BATCH, CROPS_PER_BATCH + 1, 2 * CROPS_PER_BATCH + 3])
def test_batches_do_not_change_the_answer(count: int) -> None:
    hu, nets = noise(GRID.shape_irc), (random_net(0), random_net(1))
    centers = np.random.default_rng(1).uniform(0, 60, (count, 3))
    together = classify(hu, centers, nets)
    assert (together.shape, together.dtype) == ((2, count), np.float64)
    for column, center in enumerate(centers):
        np.testing.assert_allclose(classify(hu, center[None], nets)[:, 0], together[:, column], atol=1e-5)


def test_no_places_are_no_answers() -> None:
    assert classify(noise((4, 5, 6)), np.empty((0, 3)), (random_net(), random_net())).shape == (2, 0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 60, 70), (5, 30, 20), (31, 48, 48), (32, 47, 90)], ids=str)
def test_scans_smaller_than_the_crop_are_repeated_at_their_edges(shape: tuple[int, int, int]) -> None:
    hu, net = noise(shape), random_net()
    centers = np.array([[0, 0, 0], np.array(shape) - 1, np.array(shape) / 2])
    found = classify(hu, centers, (net,))[0]
    missing = [max(0, wanted - there) for wanted, there in zip((32, 48, 48), shape)]
    padded = np.pad(hu, [(short // 2, short - short // 2) for short in missing], mode="edge")
    for prob, center in zip(found, centers):
        starts = [
            min(max(round(middle) - wanted // 2, 0), size - wanted) if size > wanted else 0
            for middle, wanted, size in zip(center.tolist(), (32, 48, 48), padded.shape)
        ]
        crop = padded[tuple(slice(start, start + wanted) for start, wanted in zip(starts, (32, 48, 48)))]
        assert prob == pytest.approx(alone(crop, net), abs=1e-5)


def test_hu_are_clipped_and_the_scan_is_not_changed() -> None:
    hu = np.full(GRID.shape_irc, 5000, np.int16)
    hu[:, :, :60] = -3024
    hu.setflags(write=False)
    model = Box().eval()
    classify(hu, np.array([[30.0, 60.0, 60.0]]), (model,))
    assert model.seen.unique().tolist() == [-1000, 1000]


def test_a_scan_in_another_order_of_memory_is_cut_alike() -> None:
    hu, net = noise((40, 60, 70)), random_net()
    centers = np.array([[20.0, 30, 30]])
    np.testing.assert_allclose(classify(np.asfortranarray(hu), centers, (net,)), classify(hu, centers, (net,)))


def test_flips_average_a_crop_over_its_eight_mirror_images() -> None:
    hu = np.full(GRID.shape_irc, -800, np.int16)
    center = np.array([[30.0, 60, 60]])
    hu[14, 36, 36] = 500  # the crop's first voxel
    model = Corner().eval()
    assert classify(hu, center, (model,)) == 1
    np.testing.assert_allclose(classify(hu, center, (model,), flips=True), 1 / 8)
    hu[45, 83, 36] = 500  # another corner
    np.testing.assert_allclose(classify(hu, center, (model, model), flips=(False, True))[:, 0], [1, 1 / 4])


def test_crops_in_mm_are_resampled_and_those_in_voxels_are_not() -> None:
    hu = np.full(GRID.shape_irc, -800, np.int16)
    hu[:, :, 60:] = 3000  # a wall at column 60; columns are 0.7 mm apart
    mm = Box(NoduleNetConfig(spacing_mm=(2.0, 0.8, 0.35))).eval()
    voxels = Box().eval()
    classify(hu, np.array([[30.0, 60.0, 60.0]]), (voxels, mm), grid=GRID)
    assert voxels.seen[0, 0, 16, 24].tolist() == [-800] * 24 + [1000] * 24
    # Steps of half a column around column 60: at 59.25 and 59.75 a quarter and three quarters of the way from lung to
    # the wall, which is clipped before it is resampled.
    expected = [-800] * 22 + [-350, 550] + [1000] * 24
    np.testing.assert_allclose(mm.seen[0, 0, 16, 24], expected, atol=1e-2)
    assert mm.seen.shape == (1, 1, 32, 48, 48)


def test_a_crop_in_mm_lies_at_the_fraction_of_a_voxel() -> None:
    hu = np.zeros(GRID.shape_irc, np.int16)
    hu[:] = 10 * np.arange(GRID.shape_irc[2])  # 10 HU a column, so 10 HU each 0.7 mm
    mm = Box(NoduleNetConfig(crop_shape=(16, 16, 16), spacing_mm=(2.0, 0.8, 0.35))).eval()
    classify(hu, np.array([[30.0, 60.0, 60.25]]), (mm,), grid=GRID)
    np.testing.assert_allclose(mm.seen[0, 0, 8, 8], 602.5 + 5 * (np.arange(16) - 7.5), atol=1e-3)


def test_crops_in_mm_need_the_grid() -> None:
    model = Box(NoduleNetConfig(spacing_mm=(1.0, 1.0, 1.0))).eval()
    with pytest.raises(ValueError, match="give the scan's grid"):
        classify(noise(GRID.shape_irc), np.array([[20.0, 30, 30]]), (model,))


def test_each_models_configuration_cuts_its_crop() -> None:
    hu = noise(GRID.shape_irc)
    center = np.array([[30.0, 60.0, 60.0]])
    small = random_net(0, NoduleNetConfig(crop_shape=(16, 32, 32)))
    usual = random_net(1)
    probs = classify(hu, center, (small, usual))
    assert probs[0, 0] == pytest.approx(alone(hu[22:38, 44:76, 44:76], small), abs=1e-5)
    assert probs[1, 0] == pytest.approx(alone(hu[14:46, 36:84, 36:84], usual), abs=1e-5)


def test_bfloat16_is_near_float32() -> None:
    hu, nets = noise(GRID.shape_irc), (random_net(0), random_net(1, NoduleNetConfig(rays=32, head="pool")))
    centers = np.random.default_rng(1).uniform(0, 60, (6, 3))
    exact = classify(hu, centers, nets)
    near = classify(hu, centers, nets, inference=InferenceSettings(precision="bf16"))
    assert 0 < np.abs(near - exact).max() < 0.05
