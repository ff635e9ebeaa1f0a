"""What the GPU tests measure with works on the CPU, in small; and it needs nothing that a GPU machine lacks."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from lungml.devices import Hardware
from lungml.fit import fit
from lungml.fit_settings import FitSettings
from lungml.models import place
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet, UNetConfig
from tests.gpu.learning import (
    Crops,
    Windows,
    busy_seconds,
    covered,
    flops_per_sample,
    peak_flops,
    random_crops,
    random_slabs,
)

CPU = torch.device("cpu")
# Whatever else lungml imports is not there. A GPU machine may have an older torch; that this cannot show.
IMPORTS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}.split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import tests.gpu.learning, tests.gpu.test_training_cuda, tests.gpu.test_cuda, tests.gpu.test_inference_cuda
"""
MISSING = (
    "zarr zarrs numcodecs SimpleITK prefect mlflow pandas sklearn xxhash pydicom nibabel matplotlib psutil httpx "
    "safetensors rich typer diskcache monai"
)


def settings(samples: int, batch_size: int) -> FitSettings:
    return FitSettings(
        epochs=1,
        samples_per_epoch=samples,
        batch_size=batch_size,
        optimizer="adamw",
        learning_rate=1e-3,
        select_by="f1",
    )


def crops_learning(count: int = 64) -> Crops:
    shape = (16, 16, 16)
    net = NoduleNet(NoduleNetConfig(crop_shape=shape), generator=torch.Generator().manual_seed(0))
    return Crops(place(net, CPU), random_crops(count, shape))


def windows_learning(count: int = 16) -> Windows:
    net = UNet(UNetConfig(depth=2, width=4), generator=torch.Generator().manual_seed(0))
    return Windows(place(net, CPU), *random_slabs(count))


@pytest.mark.parametrize("make", [crops_learning, windows_learning])
def test_the_problems_learn_through_the_loop(make: type) -> None:
    learning = make()
    before = [p.clone() for p in learning.model.parameters()]
    seen = []
    fit(learning, settings(16, 8), seed=0, fabric=Hardware(device="cpu").launch(), on_epoch=seen.append)
    assert np.isfinite(seen[0].train["loss"])
    assert not all(torch.equal(a, b) for a, b in zip(before, learning.model.parameters()))


def test_an_epoch_holds_every_crop_once() -> None:
    order = crops_learning(64).order(np.random.default_rng(0), 64, 1)
    assert sorted(order.tolist()) == list(range(64))


def test_covered_counts_what_overlaps_once() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (1, 1.5)]) == 4
    assert covered([]) == 0


def test_a_busy_device_is_told_from_an_idle_one() -> None:
    a = torch.randn(400, 400)
    assert busy_seconds(lambda: [a @ a for _ in range(20)], CPU) > 1e-4
    assert busy_seconds(lambda: time.sleep(0.1), CPU) < 0.01


def test_operations_are_those_one_can_count() -> None:
    found = flops_per_sample(crops_learning(), 4)
    # Each convolution of 27 weights: 2 x 27 x inputs x outputs a voxel; the linear layer 2 x 64 x 2.
    widths, voxels, forward = [1, 8, 16, 32, 64], 16**3, 2 * 64 * 2
    for inputs, outputs in pairwise(widths):
        forward += 2 * 27 * voxels * outputs * (inputs + outputs)
        voxels //= 8
    # Backwards twice as many; the crops' own gradient may be left out.
    first = 2 * 27 * 16**3 * 8
    assert 3 * forward - 2 * first <= found <= 3 * forward + 2 * first


def test_the_peak_is_a_rate() -> None:
    assert 1e8 < peak_flops(CPU, torch.float32, side=256) < 1e14


def test_a_gpu_machine_can_import_the_tests() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS.format(missing=MISSING)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
