"""CUDA gives what the CPU gives.

Imports pytest, torch, numpy and scipy only, since a GPU machine may have nothing else. There, with the repository on
PYTHONPATH, run `python -m pytest -c /dev/null --rootdir . tests/gpu`; here, `pytest -m gpu tests/gpu`.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from lungml import augment
from lungml.candidates import GroupingSettings
from lungml.classify import classify
from lungml.findings import Bundle, find_nodules
from lungml.geometry import Grid
from lungml.losses import bce_batch_dice_loss, report_segmentation_loss
from lungml.models import place
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.segment import segment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
GRID = Grid(shape_irc=(20, 90, 101), spacing_xyz=(0.7, 0.8, 2.0), origin_xyz=(-10, 5, 3))


def volume() -> np.ndarray:
    rng = np.random.default_rng(0)
    hu = rng.normal(-850, 30, GRID.shape_irc)
    hu[8:13, 40:46, 50:56] = 60
    return hu.astype(np.int16)


def both(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Module]:
    return place(copy.deepcopy(model), CPU).eval(), place(copy.deepcopy(model), CUDA).eval()


def test_segmentation_is_the_same() -> None:
    cpu, cuda = both(UNet(generator=torch.Generator().manual_seed(0)))
    on_cpu, on_cuda = (segment(volume(), model).mask(0.5) for model in (cpu, cuda))
    assert 0 < on_cpu.mean() < 1
    assert (on_cpu != on_cuda).mean() < 1e-4


def test_classification_is_the_same() -> None:
    cpu, cuda = both(NoduleNet(generator=torch.Generator().manual_seed(0)))
    centers = np.random.default_rng(1).uniform(0, GRID.shape_irc, (70, 3))
    np.testing.assert_allclose(classify(volume(), centers, (cuda,)), classify(volume(), centers, (cpu,)), atol=1e-4)


def test_a_scan_gives_findings_of_the_cpus() -> None:
    unet = both(UNet(generator=torch.Generator().manual_seed(2)))
    net = both(NoduleNet(generator=torch.Generator().manual_seed(3)))
    found = [
        find_nodules(volume(), GRID, Bundle(segmentation=u, nodule=n, malignancy=n, grouping=GroupingSettings()))
        for u, n in zip(unet, net)
    ]
    assert abs(len(found[0]) - len(found[1])) <= 0.02 * len(found[0])


def test_augmentation_draws_and_resamples_as_on_the_cpu() -> None:
    settings = augment.Augmentation(flip=True, shift=0.1, scale=0.2, rotate=True)  # noise differs by design
    crops = torch.randn(6, 1, 32, 48, 48) * 300
    on_cpu = augment.augment_crops(crops, settings, torch.Generator().manual_seed(4))
    on_cuda = augment.augment_crops(crops.cuda(), settings, torch.Generator().manual_seed(4))
    assert on_cuda.is_cuda
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=0.5, rtol=0)


@pytest.mark.parametrize("loss", [report_segmentation_loss, bce_batch_dice_loss])
def test_losses_are_the_same(loss: object) -> None:
    logits = torch.randn(4, 1, 64, 64)
    target = (torch.rand(4, 1, 64, 64) > 0.95).float()
    assert callable(loss)
    torch.testing.assert_close(loss(logits.cuda(), target.cuda()).cpu(), loss(logits, target))
