"""Which scan, which networks and which files are the benchmarks run on?"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lungml.geometry import Grid, irc_to_xyz
from lungml.luna import Nodule
from lungml.models import nodule_net, unet
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.phantom import Phantom, PhantomSettings, draw_phantom

SERIES_UID = "1.2.3"
REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
PUBLISHED = "published weights" if REAL_DATA else "random weights"
CHEST_HU = (-500.0, 450.0)  # mean and standard deviation of a clipped chest CT, about
# An untrained U-Net is made to mark this share of the voxels. Seed and share were chosen to leave some 200 candidates
# on the default scan: most random networks mark single voxels, which the erosion deletes.
MASK_SEED, MASK_SHARE = 5, 0.015


@cache
def phantom(size_irc: tuple[int, int, int]) -> Phantom:
    """A synthetic scan with four nodules; the same one at every call."""
    return draw_phantom(SERIES_UID, np.random.default_rng(0), PhantomSettings(size_irc=size_irc, nodules=(4, 4)))


@cache
def long_scan() -> tuple[npt.NDArray[np.int16], Grid, tuple[Nodule, ...]]:
    """512 x 512 x 200 with four nodules: 64 drawn slices, mirrored on along the index axis (drawing 200 takes long)."""
    drawn = phantom((64, 512, 512))
    hu = np.pad(drawn.hu, ((0, 136), (0, 0), (0, 0)), mode="symmetric")
    grid = Grid(
        shape_irc=(200, 512, 512),
        spacing_xyz=drawn.grid.spacing_xyz,
        origin_xyz=drawn.grid.origin_xyz,
        direction=drawn.grid.direction,
    )
    nodules = []
    for nodule in drawn.nodules:
        x, y, z = irc_to_xyz(nodule.center_irc, grid).tolist()
        nodules.append(
            Nodule(
                series_uid=SERIES_UID,
                center_xyz=(x, y, z),
                diameter_mm=nodule.diameter_mm,
                malignant=nodule.malignant,
                ratings=nodule.ratings,
            )
        )
    return hu, grid, tuple(nodules)


def write_mhd(folder: Path, hu: npt.NDArray[np.int16], grid: Grid) -> Path:
    """An uncompressed `.mhd` with its `.raw`."""
    header = folder / f"{SERIES_UID}.mhd"
    hu.astype("<i2").tofile(header.with_suffix(".raw"))
    numbers = {
        # MetaImage lists the matrix column by column.
        "TransformMatrix": np.asarray(grid.direction).T.ravel().tolist(),
        "Offset": grid.origin_xyz,
        "ElementSpacing": grid.spacing_xyz,
        "DimSize": grid.shape_irc[::-1],
    }
    header.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        + "".join(f"{name} = {' '.join(str(n) for n in values)}\n" for name, values in numbers.items())
        + f"ElementType = MET_SHORT\nElementDataFile = {header.stem}.raw\n"
    )
    return header


def specks(size_irc: tuple[int, int, int], count: int) -> npt.NDArray[np.bool_]:
    """A segmentation of about `count` blobs, most of which outlive one erosion."""
    rng = np.random.default_rng(1)
    mask = np.zeros(size_irc, dtype=np.bool_)
    for radius, share in ((1, 0.1), (2, 0.6), (3, 0.3)):
        axes = np.ogrid[-radius : radius + 1, -radius : radius + 1, -radius : radius + 1]
        ball = sum(axis**2 for axis in axes) <= radius**2
        for center in rng.integers(4, np.array(size_irc) - 4, (int(count * share), 3)).tolist():
            mask[tuple(slice(c - radius, c + radius + 1) for c in center)] |= ball
    return mask


def u_net(hu: npt.NDArray[np.int16]) -> UNet:
    """The published U-Net, or a random one whose last bias makes it mark about `MASK_SHARE` of this scan."""
    if REAL_DATA:
        net = UNet()
        net.load_state_dict(unet.load_published(_published("segmentation")))
        return net.eval()
    net = UNet(generator=torch.Generator().manual_seed(MASK_SEED)).eval()
    _expect_chest(net)
    middle = len(hu) // 2
    slab = torch.from_numpy(np.clip(hu[middle - 3 : middle + 4], -1000, 1000)).float()
    with torch.no_grad():
        border = torch.quantile(net(slab[None]).flatten(), 1 - MASK_SHARE)
        net.head.bias -= border
    return net


def classifiers() -> tuple[NoduleNet, NoduleNet]:
    """The published nodule and malignancy classifiers, or two random ones."""
    nets = []
    for seed, name in enumerate(("nodule", "malignancy-scratch")):
        net = NoduleNet(generator=torch.Generator().manual_seed(seed)).eval()
        if REAL_DATA:
            net.load_state_dict(nodule_net.load_published(_published(name)))
        else:
            _expect_chest(net)
        nets.append(net)
    return nets[0], nets[1]


def _published(name: str) -> dict[str, torch.Tensor]:
    path = Path(str(REAL_DATA)) / "report-weights" / f"{name}.state"
    return torch.load(path, weights_only=True, map_location="cpu")["model_state"]


def _expect_chest(net: UNet | NoduleNet) -> None:
    """Without it an untrained network sees raw HU, and every probability is 0 or 1: nothing to compare."""
    mean, deviation = CHEST_HU
    net.input_norm.running_mean.fill_(mean)
    net.input_norm.running_var.fill_(deviation**2)
