"""How long a GPU takes for a scan, and that it finds what the CPU finds, under every lever.

Imports as `test_cuda.py`. `pytest -m gpu -s tests/gpu/test_inference_cuda.py` prints the figures; what is asserted is
what holds on any GPU: the same answers, and no time below that of the convolutions alone.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from lungml.candidates import Candidates, GroupingSettings, group_candidates
from lungml.classify import CUDA_CROPS_PER_BATCH, classify
from lungml.geometry import Grid
from lungml.inference import InferenceSettings, float32_products
from lungml.lungs import LungField
from lungml.marked import Marked
from lungml.models import place
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet
from lungml.segment import CUDA_SLICES, segment
from tests.benchmarks.floor import convolutions_alone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    pytest.mark.timeout(1800),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SCAN = (250, 512, 512)
NODULES = 100  # of the candidates, taken for nodules, so that malignancy is asked
MARKED_SHARE = 0.02  # of the voxels
LEVERS = {
    "fp32": InferenceSettings(),
    "bf16": InferenceSettings(precision="bf16"),
    "fp32 compiled": InferenceSettings(compiled=True),
    "bf16 compiled": InferenceSettings(precision="bf16", compiled=True),
}


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    few = rng.normal(-600, 350, (16, *shape[1:])).astype(np.int16)
    return np.ascontiguousarray(few[np.arange(shape[0]) % 16])


def u_net(seed: int = 0) -> UNet:
    """An untrained U-Net that marks `MARKED_SHARE` of the noise."""
    net = UNet(generator=torch.Generator().manual_seed(seed)).eval()
    net.input_norm.running_mean.fill_(-600)
    net.input_norm.running_var.fill_(350**2)
    with torch.no_grad():
        logits = net(torch.from_numpy(noise((7, 128, 128))).clamp(-1000, 1000).float()[None])
        net.head.bias -= torch.quantile(logits, 1 - MARKED_SHARE)
    return net


def classifier(seed: int) -> NoduleNet:
    net = NoduleNet(generator=torch.Generator().manual_seed(seed)).eval()
    net.input_norm.running_mean.fill_(-600)
    net.input_norm.running_var.fill_(350**2)
    return net


def on(device: torch.device, net: Any) -> Any:
    return place(copy.deepcopy(net), device)


def dense(marked: Marked) -> np.ndarray:
    probs = np.zeros(marked.shape, np.float32)
    probs.reshape(-1)[marked.voxels] = marked.probs
    return probs


# The same answers


@pytest.mark.parametrize("shape", [(1, 40, 44), (CUDA_SLICES, 33, 50), (2 * CUDA_SLICES + 5, 64, 61)], ids=str)
@pytest.mark.parametrize("flips", [False, True])
def test_the_gpu_marks_what_the_cpu_marks(shape: tuple[int, int, int], flips: bool) -> None:
    hu, net = noise(shape), u_net()
    cpu, cuda = (dense(segment(hu, on(device, net), floor=0, flips=flips)) for device in (CPU, CUDA))
    np.testing.assert_allclose(cuda, cpu, atol=1e-3)


def test_one_block_does_not_overtake_another() -> None:
    # Blocks are copied without waiting, into memory that the last block may still be read from.
    hu = np.random.default_rng(3).normal(-600, 350, (6 * CUDA_SLICES, 128, 128)).astype(np.int16)
    net = on(CUDA, u_net())
    wanted = dense(segment(hu, on(CPU, net), floor=0))
    for _ in range(3):
        np.testing.assert_allclose(dense(segment(hu, net, floor=0)), wanted, atol=1e-3)


def test_a_field_gets_what_the_full_field_has() -> None:
    shape = (40, 160, 176)
    hu, net = noise(shape), on(CUDA, u_net())
    near = np.zeros((40, 40, 44), bool)
    near[5:12, 15:20, 20:26] = near[30:34, 35:40, 40:44] = True
    field = LungField(near=near, step=np.array([1, 4, 4]), shape=shape)
    full, part = (dense(segment(hu, net, floor=0, field=where)) for where in (None, field))
    assert (part > 0).any()
    np.testing.assert_allclose(part[part > 0], full[part > 0], atol=1e-4)


def test_the_gpu_classifies_as_the_cpu() -> None:
    hu = noise((60, 128, 128))
    centers = np.random.default_rng(1).uniform(0, hu.shape, (2 * CUDA_CROPS_PER_BATCH + 9, 3))
    nets = classifier(0), classifier(1)
    cuda = classify(hu, centers, [on(CUDA, net) for net in nets])
    some = np.arange(0, len(centers), 20)
    np.testing.assert_allclose(cuda[:, some], classify(hu, centers[some], [on(CPU, net) for net in nets]), atol=1e-3)


def test_the_gpu_classifies_crops_in_mm_as_the_cpu() -> None:
    hu = noise((60, 128, 128))
    grid = Grid(shape_irc=hu.shape, spacing_xyz=(0.7, 0.7, 2.0), origin_xyz=(0, 0, 0))
    config = NoduleNetConfig(crop_shape=(16, 16, 16), spacing_mm=(1.5, 1.5, 1.5))
    net = NoduleNet(config, generator=torch.Generator().manual_seed(0)).eval()
    for count in (5, 40):  # cut here, cut there
        centers = np.random.default_rng(1).uniform(0, hu.shape, (count, 3))
        cpu, cuda = (classify(hu, centers, (on(device, net),), grid=grid) for device in (CPU, CUDA))
        np.testing.assert_allclose(cuda, cpu, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in LEVERS if name != "fp32"])
def test_a_lever_stays_near(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="lungml")
    hu, unet, net = noise((20, 64, 64)), on(CUDA, u_net()), on(CUDA, classifier(0))
    centers = np.random.default_rng(1).uniform(0, 60, (40, 3))
    tolerance = 0.1 if "bf16" in name else 1e-3
    plain, lever = (segment(hu, unet, floor=0, inference=LEVERS[how]) for how in ("fp32", name))
    np.testing.assert_allclose(lever.probs, plain.probs, atol=tolerance)
    plain, lever = (classify(hu, centers, (net,), inference=LEVERS[how]) for how in ("fp32", name))
    np.testing.assert_allclose(lever, plain, atol=tolerance)
    for line in caplog.messages:
        print(line)  # a machine without what a compiler needs says so, and answers


# Seconds a scan


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is read and what reads it: the networks are untrained, so the places of the candidates are given."""

    hu: np.ndarray
    marked: Marked
    grid: Grid
    unet: UNet
    nodule: NoduleNet
    malignancy: NoduleNet


@pytest.fixture(scope="module")
def scene() -> Scene:
    """250 slices and some 1800 candidates."""
    blobs = np.zeros(SCAN, bool)
    places = np.random.default_rng(5).integers(5, np.array(SCAN) - 5, (1900, 3))
    blobs[tuple(places.T)] = True
    mask = ndimage.binary_dilation(blobs, iterations=3)
    return Scene(
        hu=noise(SCAN),
        marked=Marked.of_mask(mask),
        grid=Grid(shape_irc=SCAN, spacing_xyz=(0.7, 0.7, 1.25), origin_xyz=(0, 0, 0)),
        unet=on(CUDA, u_net()),
        nodule=on(CUDA, classifier(0)),
        malignancy=on(CUDA, classifier(1)),
    )


def seconds(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.mark.parametrize("name", LEVERS)
def test_a_scan_of_250_slices_and_1800_candidates(scene: Scene, name: str) -> None:
    inference = LEVERS[name]
    rule = GroupingSettings(rule="report")
    found: list[Candidates] = []

    def grouped() -> None:
        found[:] = [group_candidates(scene.marked, scene.hu, scene.grid, rule)]

    def nodules() -> np.ndarray:
        return classify(scene.hu, found[0].centers_irc, (scene.nodule,), inference=inference)

    def malignant() -> np.ndarray:
        return classify(scene.hu, found[0].centers_irc[:NODULES], (scene.malignancy,), inference=inference)

    steps: dict[str, Callable[[], Any]] = {
        "segment": lambda: segment(scene.hu, scene.unet, inference=inference),
        "group": grouped,
        "nodule": nodules,
        "malignancy": malignant,
    }
    for step in steps.values():  # the first time compiles, and chooses algorithms
        step()
    count = len(found[0])
    assert 1500 < count < 2000
    torch.cuda.reset_peak_memory_stats()
    took = {what: min(seconds(step) for _ in range(3)) for what, step in steps.items()}
    memory_gb = torch.cuda.max_memory_allocated() / 2**30
    half = inference.precision == "bf16"
    slabs = torch.zeros(CUDA_SLICES, 7, *SCAN[1:], device=CUDA)
    crops = torch.zeros(CUDA_CROPS_PER_BATCH, 1, 32, 48, 48, device=CUDA)
    floor_s = 0.0
    for net, example, samples in ((scene.unet, slabs, SCAN[0]), (scene.nodule, crops, count + NODULES)):
        if half:
            net, example = copy.deepcopy(net).bfloat16(), example.bfloat16()
        bare = convolutions_alone(net, example, times=4)
        with float32_products():
            bare()
            floor_s += min(seconds(bare) for _ in range(3)) * samples / (4 * len(example))
    scan_s = sum(took.values())
    parts = ", ".join(f"{what} {value:.2f}" for what, value in took.items())
    print(
        f"\n{torch.cuda.get_device_name()}, {name}: {scan_s:.2f} s a scan ({parts}), "
        f"{count} candidates; {scan_s / floor_s:.1f} x the convolutions alone ({floor_s:.2f} s); "
        f"peak memory {memory_gb:.2f} GB"
    )
    assert floor_s < 1.2 * scan_s  # or work was left out
    assert np.isfinite(nodules()).all()
