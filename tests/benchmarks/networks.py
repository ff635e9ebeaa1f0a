"""How fast does a scan become findings, and how fast by the report's procedure?"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import nn

from lungml.candidates import GroupingSettings, group_candidates
from lungml.classify import classify
from lungml.findings import Bundle, Finding, find_nodules
from lungml.models import place
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.segment import segment
from tests.benchmarks.measure import Row, Settings, compare, further_than
from tests.benchmarks.scenes import PUBLISHED, classifiers, phantom, specks, u_net

CPU = torch.device("cpu")
MAX_FLIPPED = 1e-3  # of the marked voxels; sums in another order move a logit by 1e-6 of itself, across 0 or not
PROB_TOLERANCE = 1e-3
MAX_UNPAIRED = 0.01  # of the candidates: one flipped voxel may split or join a component


# ---------------------------------------------------------------- grouping
def grouping(settings: Settings) -> list[Row]:
    """The report's rule on a segmentation with some 1300 components."""
    size = (130, 512, 512)
    mask = specks(size, 1350)
    components = ndimage.label(mask)[1]
    hu = np.random.default_rng(5).integers(-1100, 300, size, dtype=np.int16)

    def ours() -> npt.NDArray[np.float64]:
        return group_candidates(mask, hu, GroupingSettings(rule="report"))

    row = compare(
        f"grouping, {components} components",
        "scipy erosion, label, center_of_mass",
        ours,
        lambda: scipy_grouping(mask, hu),
        disagree=further_than(1e-6, "voxels"),
        repeats=settings.repeats,
        note=f"512x512x130, {len(ours())} candidates in the same order within 1e-6 voxels",
    )
    return [row]


def scipy_grouping(mask: npt.NDArray[np.bool_], hu: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    labels, count = ndimage.label(ndimage.binary_erosion(mask))
    centers = ndimage.center_of_mass(hu.clip(-1000, 1000) + 1001, labels, np.arange(1, count + 1))
    return np.array(centers).reshape(-1, 3)


# ---------------------------------------------------------------- U-Net
def u_net_slices(settings: Settings) -> list[Row]:
    """Eight slices of 512 x 512 through the U-Net."""
    hu = np.ascontiguousarray(phantom((64, 512, 512)).hu[28:36])
    plain = u_net(hu)
    placed = place(deepcopy(plain), CPU)
    return [
        compare(
            stage,
            f"eager float32 NCHW, batch {batch}, sigmoid",
            lambda: segment(hu, placed),
            lambda batch=batch: report_segment(hu, plain, batch),
            disagree=_flipped,
            floor=_convolutions_alone(placed, slices=len(hu)),
            repeats=settings.repeats,
            note=f"{PUBLISHED}; flipped voxels at most {MAX_FLIPPED:.1%} of the marked; floor: the convolutions alone",
        )
        for stage, batch in (("U-Net, 8 slices 512x512", 4), ("", 1))
    ]


@torch.no_grad()
def report_segment(hu: npt.NDArray[np.int16], model: UNet, batch: int = 4) -> npt.NDArray[np.bool_]:
    clipped = hu.clip(-1000, 1000).astype(np.float32)
    last = len(clipped) - 1
    probs = np.empty(clipped.shape, dtype=np.float32)
    for start in range(0, len(clipped), batch):
        middles = range(start, min(start + batch, len(clipped)))
        slabs = np.stack([clipped[np.clip(np.arange(m - 3, m + 4), 0, last)] for m in middles])
        probs[start : start + batch] = torch.sigmoid(model(torch.from_numpy(slabs)))[:, 0].numpy()
    return probs > 0.5


def _flipped(ours: npt.NDArray[np.bool_], peer: npt.NDArray[np.bool_]) -> str:
    marked, flipped = int(np.count_nonzero(peer)), int(np.count_nonzero(ours != peer))
    if not marked:
        return "nothing was marked, so nothing can be compared"
    return f"{flipped} voxels differ, {marked} are marked" if flipped > MAX_FLIPPED * marked else ""


def _convolutions_alone(model: UNet, *, slices: int) -> Callable[[], None]:
    """The U-Net's convolutions on inputs of their shapes, channels-last, slice by slice: no norm, ReLU or pooling."""
    layers: list[tuple[nn.Module, torch.Tensor]] = []

    def remember(layer: nn.Module, arguments: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        layers.append((layer, torch.randn(arguments[0].shape).to(memory_format=torch.channels_last)))

    hooked = deepcopy(model)
    for layer in hooked.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(remember)
    with torch.inference_mode():
        hooked(torch.zeros(1, model.config.channels, 512, 512).to(memory_format=torch.channels_last))
    bare = [(layer.forward, picture) for layer, picture in layers]  # `forward` itself: the hooks stay silent

    @torch.inference_mode()
    def run() -> None:
        for _ in range(slices):
            for convolve, picture in bare:
                convolve(picture)

    return run


# ---------------------------------------------------------------- classify
def classify_crops(settings: Settings) -> list[Row]:
    """64 crops of a scan through one classifier, cutting included."""
    hu = phantom((64, 512, 512)).hu
    low = np.array([16, 24, 24])
    centers = np.random.default_rng(6).integers(low, np.array(hu.shape) - low, (64, 3)).astype(np.float64)
    plain = classifiers()[0]
    placed = place(deepcopy(plain), CPU)
    return [
        compare(
            stage,
            f"eager float32 NCDHW, batch {batch}",
            lambda: classify(hu, centers, (placed,))[0],
            lambda batch=batch: report_classify(hu, centers, plain, batch),
            disagree=further_than(PROB_TOLERANCE, "of probability"),
            repeats=settings.repeats,
            note=f"{PUBLISHED}; probabilities within {PROB_TOLERANCE:g}",
        )
        for stage, batch in (("classify 64 crops", 1), ("", 4))
    ]


@torch.no_grad()
def report_classify(
    hu: npt.NDArray[np.int16], centers_irc: npt.NDArray[np.float64], model: NoduleNet, batch: int
) -> npt.NDArray[np.float64]:
    probs = np.empty(len(centers_irc))
    for start in range(0, len(centers_irc), batch):
        boxes = []
        for center in np.rint(centers_irc[start : start + batch]).astype(int).tolist():
            box = []
            for middle, side, size in zip(center, (32, 48, 48), hu.shape):
                first = min(max(middle - side // 2, 0), size - side)
                box.append(slice(first, first + side))
            boxes.append(hu[tuple(box)].clip(-1000, 1000).astype(np.float32))
        logits = model(torch.from_numpy(np.stack(boxes))[:, None])
        probs[start : start + batch] = torch.softmax(logits, dim=1)[:, 1].numpy()
    return probs


# ---------------------------------------------------------------- whole scan
def whole_scan(settings: Settings) -> list[Row]:
    """A scan in memory becomes a ranked list."""
    size = (130, 512, 512) if settings.full else (72, 256, 256)
    scan = phantom(size)
    plain = (u_net(scan.hu), *classifiers())
    unet, nodule, malignancy = (place(deepcopy(net), CPU) for net in plain)
    bundle = Bundle(segmentation=unet, nodule=nodule, malignancy=malignancy, grouping=GroupingSettings(rule="report"))
    candidates = 0

    def disagree(ours: tuple[Finding, ...], peer: npt.NDArray[np.float64]) -> str:
        nonlocal candidates
        candidates = len(peer)
        return _other_findings(ours, peer)

    row = compare(
        f"whole scan {size[1]}x{size[2]}x{size[0]}",
        "the report's procedure",
        lambda: find_nodules(scan.hu, scan.grid, bundle),
        lambda: report_find_nodules(scan.hu, *plain),
        disagree=disagree,
        repeats=settings.repeats,
    )
    agreed = f"{1 - MAX_UNPAIRED:.0%} of {candidates} candidates within 0.5 voxel and {PROB_TOLERANCE:g} of probability"
    return [replace(row, note=f"{PUBLISHED}; {agreed}")]


def report_find_nodules(
    hu: npt.NDArray[np.int16], unet: UNet, nodule: NoduleNet, malignancy: NoduleNet
) -> npt.NDArray[np.float64]:
    """Rows of index, row, col, nodule and malignancy probability, the most probable nodule first."""
    centers = scipy_grouping(report_segment(hu, unet), hu)
    probs = [report_classify(hu, centers, net, 4) for net in (nodule, malignancy)]
    found = np.column_stack([centers, *probs])
    return found[np.argsort(-found[:, 3], kind="stable")]


def _other_findings(ours: tuple[Finding, ...], peer: npt.NDArray[np.float64]) -> str:
    if not len(peer) or not ours:
        return f"{len(ours)} and {len(peer)} candidates: nothing to compare; choose another MASK_SEED"
    mine = np.array([(*f.center_irc, f.prob_nodule, f.prob_malignant) for f in ours])
    distance, nearest = cKDTree(mine[:, :3]).query(peer[:, :3])
    off = np.abs(mine[nearest, 3:] - peer[:, 3:]).max(axis=1)
    unpaired = int(np.count_nonzero((distance > 0.5) | ~(off <= PROB_TOLERANCE))) + abs(len(mine) - len(peer))
    if unpaired > MAX_UNPAIRED * len(peer):
        return f"{len(mine)} and {len(peer)} candidates, {unpaired} without their like"
    return ""
