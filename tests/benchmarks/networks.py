"""How fast does a scan become findings, and how fast by the report's procedure?"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from lungml.candidates import GroupingSettings, group_candidates
from lungml.classify import classify
from lungml.findings import Bundle, Finding, find_nodules
from lungml.geometry import Grid
from lungml.inference import InferenceSettings
from lungml.lungs import LungField, lung_field
from lungml.marked import Marked
from lungml.models import place
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.phantom import Phantom
from lungml.segment import segment
from tests.benchmarks.floor import convolutions_alone
from tests.benchmarks.growth import places, scan_memory
from tests.benchmarks.measure import Row, Settings, compare, further_than
from tests.benchmarks.scenes import PUBLISHED, classifiers, phantom, specks, u_net

CPU = torch.device("cpu")
MAX_FLIPPED = 1e-3  # of the marked voxels; sums in another order move a logit by 1e-6 of itself, across 0 or not
PROB_TOLERANCE = 1e-3
MAX_UNPAIRED = 0.01  # of the candidates: one flipped voxel may split or join a component


# ---------------------------------------------------------------- grouping
def grouping(settings: Settings) -> list[Row]:
    """The report's rule on a segmentation with some 1300 components, from a mask and from what `segment` returns."""
    size = (130, 512, 512)
    mask = specks(size, 1350)
    marked = Marked.of_mask(mask)
    components = ndimage.label(mask)[1]
    hu = np.random.default_rng(5).integers(-1100, 300, size, dtype=np.int16)
    grid = Grid(shape_irc=size, spacing_xyz=(0.7, 0.7, 1.25), origin_xyz=(0.0, 0.0, 0.0))

    def ours(marked: Marked) -> npt.NDArray[np.float64]:
        return group_candidates(marked, hu, grid, GroupingSettings(rule="report")).centers_irc

    return [
        compare(
            stage,
            "scipy erosion, label, center_of_mass",
            run,
            lambda: scipy_grouping(mask, hu),
            disagree=further_than(1e-6, "voxels"),
            repeats=settings.repeats,
            note=f"512x512x130, {len(ours(marked))} candidates in the same order within 1e-6 voxels; {what}",
        )
        for stage, run, what in (
            (f"grouping, {components} components", lambda: ours(marked), "from the marked voxels, as the pipeline"),
            ("", lambda: ours(Marked.of_mask(mask)), "from a dense mask"),
        )
    ]


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
    floor = convolutions_alone(placed, torch.zeros(1, placed.config.channels, 512, 512), times=len(hu))
    sides = (
        ("U-Net, 8 slices 512x512", 4, InferenceSettings()),
        ("", 1, InferenceSettings()),
        ("the same, compiled", 4, InferenceSettings(compiled=True)),
    )
    rows = [
        compare(
            stage,
            f"eager float32 NCHW, batch {batch}, sigmoid",
            lambda inference=inference: _mask(segment(hu, placed, inference=inference)),
            lambda batch=batch: report_segment(hu, plain, batch),
            disagree=_flipped,
            floor=floor,
            repeats=settings.repeats,
            note=f"{PUBLISHED}; flipped voxels at most {MAX_FLIPPED:.1%} of the marked",
        )
        for stage, batch, inference in sides
    ]
    return [_beside_its_floor(row) for row in rows]


def _mask(marked: Marked) -> npt.NDArray[np.bool_]:
    return marked.mask(0.5)


def _beside_its_floor(row: Row) -> Row:
    if not row.ours_s or not row.floor_s:
        return row
    times = f"{row.ours_s / row.floor_s:.2f} x the floor, which is its convolutions alone"
    return replace(row, note=f"{row.note}; {times}")


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


# ---------------------------------------------------------------- classify
def classify_crops(settings: Settings) -> list[Row]:
    """64 crops of a scan through one classifier, cutting included."""
    hu = phantom((64, 512, 512)).hu
    centers = places(hu.shape, 64)
    plain = classifiers()[0]
    placed = place(deepcopy(plain), CPU)
    rows = [
        compare(
            stage,
            f"eager float32 NCDHW, batch {batch}",
            lambda: classify(hu, centers, (placed,))[0],
            lambda batch=batch: report_classify(hu, centers, plain, batch),
            disagree=further_than(PROB_TOLERANCE, "of probability"),
            floor=convolutions_alone(placed, torch.zeros(4, 1, 32, 48, 48), times=16),
            repeats=settings.repeats,
            note=f"{PUBLISHED}; probabilities within {PROB_TOLERANCE:g}",
        )
        for stage, batch in (("classify 64 crops", 1), ("", 4))
    ]
    return [_beside_its_floor(row) for row in rows]


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
    """A scan in memory becomes a ranked list: float32 on the full field, and in the lungs alone."""
    size = (130, 512, 512) if settings.full else (72, 256, 256)
    scan = phantom(size)
    plain = (u_net(scan.hu), *classifiers())
    unet, nodule, malignancy = (place(deepcopy(net), CPU) for net in plain)
    bundle = Bundle(segmentation=unet, nodule=nodule, malignancy=malignancy, grouping=GroupingSettings(rule="report"))
    lungs = replace(bundle, inference=InferenceSettings(lungs_only=True))
    field = lung_field(scan.hu, scan.grid, lungs.inference.margin_mm)
    full = _scan_row(f"whole scan {size[1]}x{size[2]}x{size[0]}", scan, bundle, plain, None, settings.repeats)
    return [
        replace(full, note=f"{full.note}; {scan_memory(size)}"),
        _scan_row("the same, lungs only", scan, lungs, plain, field, settings.repeats),
    ]


def _scan_row(
    stage: str,
    scan: Phantom,
    bundle: Bundle,
    plain: tuple[UNet, NoduleNet, NoduleNet],
    field: LungField | None,
    repeats: int,
) -> Row:
    """A bundle beside the report's procedure, whose candidates must be the bundle's wherever it looks."""
    everywhere, there = 0, 0

    def disagree(ours: tuple[Finding, ...], peer: npt.NDArray[np.float64]) -> str:
        nonlocal everywhere, there
        everywhere = len(peer)
        if field:
            peer = peer[field.holds(tuple(np.rint(peer[:, :3]).astype(np.int64).T))]
        there = len(peer)
        return _other_findings(ours, peer)

    row = compare(
        stage,
        "the report's procedure",
        lambda: find_nodules(scan.hu, scan.grid, bundle),
        lambda: report_find_nodules(scan.hu, *plain),
        disagree=disagree,
        repeats=repeats,
    )
    agreed = f"{1 - MAX_UNPAIRED:.0%} of {there} candidates within 0.5 voxel and {PROB_TOLERANCE:g} of probability"
    left_out = f"; {everywhere - there} candidates outside are not looked at" if field else ""
    return replace(row, note=f"{PUBLISHED}; {agreed}{left_out}")


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
    off = np.abs(mine[nearest, 3:] - peer[:, 3:])
    # Malignancy is asked of what was taken for a nodule, and need not be known of the rest.
    asked = mine[nearest, 3] >= 0.5
    alike = (distance <= 0.5) & (off[:, 0] <= PROB_TOLERANCE) & (~asked | (off[:, 1] <= PROB_TOLERANCE))
    unpaired = int(np.count_nonzero(~alike)) + abs(len(mine) - len(peer))
    if unpaired > MAX_UNPAIRED * len(peer):
        return f"{len(mine)} and {len(peer)} candidates, {unpaired} without their like"
    return ""
