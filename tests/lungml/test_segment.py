import json
import logging
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from lungml.inference import InferenceError, InferenceSettings
from lungml.lungs import LungField
from lungml.marked import Marked
from lungml.models.unet import UNet, UNetConfig
from lungml.segment import SLICES_PER_BLOCK, segment


class Bright(UNet):
    """The logit is the middle slice's HU; remembers what it was shown."""

    def forward(self, slab: torch.Tensor) -> torch.Tensor:
        self.seen = slab.clone()
        return slab[:, 3:4]


class Left(UNet):
    """The probability is `share` where the middle slice is bright and lies left in the picture, else next to none."""

    def __init__(self, share: float = 0.999999) -> None:
        super().__init__()
        self.logit = float(np.log(share / (1 - share)))

    def forward(self, slab: torch.Tensor) -> torch.Tensor:
        middle = slab[:, slab.shape[1] // 2, None]
        inside = (middle > 0) & (torch.arange(slab.shape[3]) < slab.shape[3] // 2)
        return torch.where(inside, self.logit, -50.0)


def random_net(config: UNetConfig | None = None, seed: int = 0) -> UNet:
    """An untrained U-Net made for `noise`, of which it marks about half: its probabilities are not all 0 or 1."""
    net = UNet(config, generator=torch.Generator().manual_seed(seed)).eval()
    net.input_norm.running_mean.fill_(-500)
    net.input_norm.running_var.fill_(400**2)
    with torch.no_grad():
        logits = net(torch.from_numpy(noise((net.config.channels, 48, 48), seed=9)).float()[None])
        net.head.bias -= logits.median()
        net.head.weight /= logits.std()
        net.head.bias /= logits.std()
    return net


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-500, 400, shape).astype(np.int16)


def plainly(hu: np.ndarray, net: UNet) -> np.ndarray:
    """The probabilities of a whole scan, slice by slice, as one would write it down."""
    context, multiple = net.config.context_slices, net.config.multiple
    clipped = torch.from_numpy(hu).clamp(-1000, 1000).float()
    pad = (0, -hu.shape[2] % multiple, 0, -hu.shape[1] % multiple)
    probs = []
    for middle in range(len(hu)):
        slab = torch.stack(
            [clipped[min(max(i, 0), len(hu) - 1)] for i in range(middle - context, middle + context + 1)]
        )
        slab = torch.nn.functional.pad(slab[None], pad, mode="replicate")
        with torch.inference_mode():
            probs.append(torch.sigmoid(net(slab))[0, 0, : hu.shape[1], : hu.shape[2]].numpy())
    return np.stack(probs)


def dense(marked: Marked) -> np.ndarray:
    """Probabilities as a volume, 0 where nothing is held."""
    probs = np.zeros(marked.shape, np.float32)
    probs.reshape(-1)[marked.voxels] = marked.probs
    return probs


def test_the_u_net_sees_clipped_hu_neighbours_and_repeated_edges() -> None:
    hu = np.arange(5, dtype=np.int16)[:, None, None] * np.ones((1, 6, 7), np.int16)
    hu[4] = 3000
    model = Bright().eval()
    marked = segment(hu, model)
    mask = marked.mask(0.5)
    assert marked.shape == hu.shape
    assert not mask[0].any()
    assert mask[1:].all()
    # The last slice: 1, 2, 3, itself, and itself repeated, padded to multiples of 4 in plane.
    assert model.seen[0, :, 0, 0].tolist() == [1, 2, 3, 1000, 1000, 1000, 1000]
    assert model.seen.shape == (1, 7, 8, 8)
    assert hu.max() == 3000


def test_odd_sides_are_padded_by_repeating_their_last_row_and_column() -> None:
    hu = np.zeros((1, 3, 5), np.int16)
    hu[0, 2], hu[0, :, 4] = 70, 90
    model = Bright().eval()
    segment(hu, model)
    assert model.seen[0, 3].tolist() == [
        [0, 0, 0, 0, 90, 90, 90, 90],
        [0, 0, 0, 0, 90, 90, 90, 90],
        [70, 70, 70, 70, 90, 90, 90, 90],
        [70, 70, 70, 70, 90, 90, 90, 90],
    ]


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5, 0.9])
def test_what_is_kept_lies_above_the_floor(floor: float) -> None:
    hu = np.arange(-4, 4, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    probs = 1 / (1 + np.exp(-hu.astype(np.float64)))
    marked = segment(hu, Bright().eval(), floor=floor)
    np.testing.assert_array_equal(marked.voxels, np.flatnonzero(probs > floor))
    np.testing.assert_allclose(marked.probs, probs[probs > floor], rtol=1e-6)
    assert marked.floor == floor


@pytest.mark.parametrize("floor", [-0.1, 1.0, float("nan")])
def test_a_floor_that_is_no_probability_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        segment(np.zeros((1, 4, 4), np.int16), Bright().eval(), floor=floor)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 4, 4), (2, 3, 50), (7, 5, 4), (40, 1, 9), (3, 61, 130), (SLICES_PER_BLOCK + 1, 12, 12), (33, 8, 8)],
    ids=str,
)
def test_any_size_gets_the_answer_of_a_plain_u_net(shape: tuple[int, int, int]) -> None:
    hu, net = noise(shape), random_net()
    np.testing.assert_allclose(dense(segment(hu, net, floor=0)), plainly(hu, net), atol=1e-5)


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    net = random_net()
    with torch.no_grad():
        net.head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="segmentation model gave a probability that is not a number"):
        segment(noise((3, 8, 8)), net)


def test_progress_ends_at_the_last_slice() -> None:
    told: list[tuple[int, int]] = []
    segment(noise((11, 8, 8)), random_net(), on_slice=lambda *said: told.append(said))
    assert told == [(n, 11) for n in range(1, 12)]


def test_a_scan_that_may_not_be_written_to_is_read() -> None:
    hu = noise((3, 9, 9))
    before = hu.copy()
    hu.setflags(write=False)
    segment(hu, random_net())
    np.testing.assert_array_equal(hu, before)


# Several models and mirror images


def test_one_model_given_thrice_says_what_it_says_alone() -> None:
    hu, net = noise((9, 50, 61)), random_net()
    alone, thrice = segment(hu, net, floor=0), segment(hu, (net, net, net), floor=0)
    np.testing.assert_allclose(thrice.probs, alone.probs, atol=1e-6)
    np.testing.assert_array_equal(segment(hu, (net,), floor=0).probs, alone.probs)
    assert 0.3 < (alone.probs > 0.5).mean() < 0.7


def test_several_models_are_averaged_before_the_threshold() -> None:
    hu = np.full((5, 8, 8), 100, np.int16)
    pair = (Left(0.9).eval(), Left(0.3).eval())
    assert segment(hu, pair, floor=0.59).mask(0.59)[:, :, :4].all()
    assert not len(segment(hu, pair, floor=0.61).voxels)
    assert not segment(hu, pair, floor=0.59).mask(0.59)[:, :, 4:].any()


def test_u_nets_of_other_depth_and_context_look_at_one_scan() -> None:
    hu = noise((6, 20, 20))
    models = random_net(), random_net(UNetConfig(context_slices=1, depth=4, width=4), seed=1)
    padded = np.pad(hu, [(0, 0), (0, 4), (0, 4)], mode="edge")  # to multiples of 8 for both
    wanted = sum(plainly(padded, model) for model in models) / 2
    np.testing.assert_allclose(dense(segment(hu, models, floor=0)), wanted[:, :20, :20], atol=1e-5)


def test_flips_average_a_slice_over_its_four_mirror_images() -> None:
    hu = np.full((5, 8, 8), -800, np.int16)
    hu[:, 1, 1] = 100
    model = Left().eval()
    places = [[n, 1, 1] for n in range(5)]
    assert np.argwhere(segment(hu, model).mask(0.5)).tolist() == places
    # Seen left in two of the four mirror images: 0.4999995 on average, at its own place.
    assert not len(segment(hu, model, flips=True).voxels)
    assert np.argwhere(segment(hu, model, flips=True, floor=0.49).mask(0.49)).tolist() == places


# A part of the scan


def field_of(near: np.ndarray, step: tuple[int, int, int], shape: tuple[int, int, int]) -> LungField:
    return LungField(near=near, step=np.array(step), shape=shape)


@pytest.mark.parametrize("config", [UNetConfig(), UNetConfig(depth=2), UNetConfig(depth=4, width=4)], ids=str)
@pytest.mark.parametrize("flips", [False, True])
def test_in_the_boxes_of_a_field_every_voxel_gets_what_the_full_field_gives_it(config: UNetConfig, flips: bool) -> None:
    shape = (11, 150, 141)
    hu, net = noise(shape), random_net(config)
    near = np.zeros((11, 38, 36), bool)
    near[1:3, 18:21, 13:17] = True  # rows 70 to 81, columns 50 to 65: read far from every border
    near[9, 34:38, 30:36] = True  # up to the last row and column
    field = field_of(near, (1, 4, 4), shape)
    full = dense(segment(hu, net, floor=0, flips=flips))
    part = dense(segment(hu, net, floor=0, flips=flips, field=field))
    boxes = np.zeros(shape, bool)
    boxes[:8, 70:82, 50:66] = True
    boxes[8:, 134:150, 118:141] = True
    assert (part > 0)[boxes].all()
    assert not part[~boxes].any()
    np.testing.assert_allclose(part[boxes], full[boxes], atol=1e-6)


def test_slices_without_field_are_not_looked_at_but_count_as_done() -> None:
    shape = (30, 64, 64)
    near = np.zeros(shape, bool)
    near[20, 30, 30] = True
    told: list[tuple[int, int]] = []
    model = Bright().eval()
    hu = np.full(shape, 50, np.int16)
    marked = segment(hu, model, field=field_of(near, (1, 1, 1), shape), on_slice=lambda *said: told.append(said))
    slices = np.unique(np.unravel_index(marked.voxels, shape)[0])
    assert slices.tolist() == list(range(16, 24))  # its block
    assert told == [(8, 30), (16, 30), *((n, 30) for n in range(17, 25)), (30, 30)]


def test_an_empty_field_marks_nothing() -> None:
    shape = (5, 16, 16)
    marked = segment(noise(shape), random_net(), field=field_of(np.zeros(shape, bool), (1, 1, 1), shape))
    assert (marked.shape, len(marked.voxels), len(marked.probs)) == (shape, 0, 0)


# Precision and graphs


def test_bfloat16_is_near_float32() -> None:
    hu, net = noise((4, 40, 44)), random_net()
    exact = segment(hu, net, floor=0).probs
    near = segment(hu, net, floor=0, inference=InferenceSettings(precision="bf16")).probs
    assert 0 < np.abs(near - exact).max() < 0.05


def test_a_subclass_runs_as_it_is_written_in_bfloat16_too() -> None:
    model = Bright().eval()
    marked = segment(np.full((2, 4, 4), 3, np.int16), model, inference=InferenceSettings(precision="bf16"))
    assert marked.probs.dtype == np.float32
    assert len(marked.voxels) == 32


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="lungml")
    return caplog


def test_without_a_compiler_the_network_runs_as_it_is_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    hu, net = noise((3, 16, 16)), random_net()
    for _ in range(2):  # once a model, not once a scan
        found = segment(hu, net, floor=0, inference=InferenceSettings(compiled=True))
        np.testing.assert_allclose(found.probs, segment(hu, net, floor=0).probs, atol=1e-6)
    assert said.messages == ["UNet is not compiled: no C++ compiler; install g++, or switch compiled off"]


def test_a_compiler_that_fails_costs_a_line_not_the_scan(
    monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    def broken(model: object) -> object:
        def fail(_: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("undefined symbol\nand forty lines more")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/bin/g++")
    hu, net = noise((3, 16, 16)), random_net()
    found = segment(hu, net, floor=0, inference=InferenceSettings(compiled=True))
    np.testing.assert_allclose(found.probs, segment(hu, net, floor=0).probs, atol=1e-6)
    assert said.messages == ["UNet is not compiled: undefined symbol"]


@pytest.mark.slow
def test_a_compiled_graph_says_what_the_network_says(said: pytest.LogCaptureFixture) -> None:
    hu, net = noise((5, 32, 48)), random_net()
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.05)):
        found = segment(hu, net, floor=0, inference=InferenceSettings(compiled=True, precision=precision))
        np.testing.assert_allclose(found.probs, segment(hu, net, floor=0).probs, atol=tolerance)
    assert not said.messages  # it was compiled
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    segment(hu, net, inference=InferenceSettings(compiled=True))
    assert counters["stats"]["unique_graphs"] == graphs  # found again, not compiled for each scan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp16"}, "fp16"),
        ({"margin_mm": -1.0}, "-1"),
        ({"margin_mm": float("nan")}, "nan"),
        ({"margin_mm": "10"}, "'10'"),
        ({"compiled": "no"}, "'no'"),
        ({"lungs_only": None}, "None"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(InferenceError, match=message) as caught:
        InferenceSettings(**change)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_come_back_from_json() -> None:
    settings = InferenceSettings(precision="bf16", compiled=True, lungs_only=True, margin_mm=8)
    assert InferenceSettings(**json.loads(json.dumps(asdict(settings)))) == settings


def test_float32_is_meant_and_the_switch_put_back() -> None:
    seen = []

    class Watched(Bright):
        def forward(self, slab: torch.Tensor) -> torch.Tensor:
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            raise KeyboardInterrupt

    before = torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            with pytest.raises(KeyboardInterrupt):
                segment(np.zeros((1, 8, 8), np.int16), Watched().eval())
            assert torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert seen == [(False, False)] * 2
