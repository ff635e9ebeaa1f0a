"""What else could this nodule have looked like: flipped, shifted, scaled, turned, bent, with other noise?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import affine_grid, grid_sample

NOISE_HU = 25.0  # the report's sigma
KNOT_VOX = 12  # between the control points of an elastic field: a nodule of 10 mm is bent, not only shifted
MAX_ELASTIC_VOX = KNOT_VOX / 4  # the field's slope then has a sigma of 0.3; below -1 the picture folds over
AIR_HU = -1000.0  # no attenuation: what a wrong contrast leaves as it is


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a picture may be changed; without arguments not at all.

    Attributes:
        flip: mirror each axis with probability 1/2.
        shift: largest shift along each axis, in half sides (0.1 of a 48 voxel side is 2.4 voxels).
        scale: each axis is scaled by a factor from 1 - scale to 1 + scale.
        rotate: turn in plane, by any angle.
        noise_hu: sigma of the Gaussian noise added to every voxel of the image, HU.
        elastic_vox: sigma of smooth random displacements along each axis, voxels; at most `MAX_ELASTIC_VOX`.
        scale_hu: contrast: a picture's distance from air is scaled by a factor from 1 - scale_hu to 1 + scale_hu.
        shift_hu: brightness: a picture is shifted by -shift_hu to shift_hu, HU.
    """

    flip: bool = False
    shift: float = 0.0
    scale: float = 0.0
    rotate: bool = False
    noise_hu: float = 0.0
    elastic_vox: float = 0.0
    scale_hu: float = 0.0
    shift_hu: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 1 or not 0 <= self.scale < 1 or not 0 <= self.noise_hu < float("inf"):
            raise ValueError(f"no augmentation has {self.shift=}, {self.scale=}, {self.noise_hu=}")
        if not 0 <= self.elastic_vox <= MAX_ELASTIC_VOX:
            raise ValueError(f"no augmentation has {self.elastic_vox=}; the most is {MAX_ELASTIC_VOX:g} voxels")
        if not 0 <= self.scale_hu < 1 or not 0 <= self.shift_hu < float("inf"):
            raise ValueError(f"no augmentation has {self.scale_hu=}, {self.shift_hu=}")

    @property
    def moves(self) -> bool:
        """Whether pictures are resampled at all."""
        return self.flip or self.rotate or self.shift > 0 or self.scale > 0 or self.elastic_vox > 0


def report_segmentation() -> Augmentation:
    """The report's, for the U-Net's slabs."""
    return Augmentation(flip=True, shift=0.03, scale=0.2, rotate=True, noise_hu=NOISE_HU)


def report_classification() -> Augmentation:
    """The report's, for the classifiers' crops."""
    return Augmentation(flip=True, shift=0.1, scale=0.2, rotate=True, noise_hu=NOISE_HU)


@torch.no_grad()
def augment_slabs(
    slabs: torch.Tensor, masks: torch.Tensor, settings: Augmentation, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change each slab in its own way in plane, and its mask with it.

    The arguments are not written to; what the settings leave alone comes back as the same tensor. Nothing is
    clipped, and the work is done on the batch's device, in its own dtype under autocast too.

    Args:
        slabs: (B, C, H, W) float, HU; the context slices are channels and move together.
        masks: (B, 1, H, W) float, 0, 1, or -1 where nobody learns; resampled like the image, then 1 where above 0.5
            and -1 where below -0.5.
        settings: how far.
        generator: draws matrices, noise, displacements and contrast in this order, each kind only where it is used,
            so that switching on a later one leaves the earlier ones as they were. See `draw_affines`, `draw_noise`.

    Returns:
        slabs and masks of the same shapes and dtypes; noise, contrast and brightness on the slabs only.
    """
    batch, device, plane = len(slabs), slabs.device, slabs.shape[2:]
    matrices = draw_affines(settings, batch, 2, generator).to(device) if settings.moves else None
    noise = draw_noise(slabs, settings.noise_hu, generator)
    if matrices is not None:
        bend = draw_displacements(settings.elastic_vox, batch, plane, 2, generator, device)
        both = resample_in_plane(torch.cat([slabs, masks.to(slabs.dtype)], dim=1), matrices, bend)
        moved = both[:, -1:]
        slabs, masks = both[:, :-1], (moved > 0.5).to(masks.dtype) - (moved < -0.5).to(masks.dtype)
    return _with_noise(_with_contrast(slabs, settings, generator), noise), masks


@torch.no_grad()
def augment_crops(crops: torch.Tensor, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Change each crop in its own way: in plane and along the index axis, rotated in plane only.

    The argument is not written to; settings that change nothing give the same tensor back. Nothing is
    clipped, and the work is done on the batch's device, in its own dtype under autocast too. Elastic displacements
    in plane are the same in all slices of a crop, those along the index axis the same in all of a slice: so both
    resamplings stay apart, and fast.

    Args:
        crops: (B, 1, D, H, W) float, HU.
        settings: how far.
        generator: as for `augment_slabs`.

    Returns:
        (B, 1, D, H, W), the same dtype.
    """
    batch, device, (depth, *plane) = len(crops), crops.device, crops.shape[2:]
    matrices = draw_affines(settings, batch, 3, generator).to(device) if settings.moves else None
    noise = draw_noise(crops, settings.noise_hu, generator)
    if matrices is not None:
        bend = draw_displacements(settings.elastic_vox, batch, plane, 2, generator, device)
        along = draw_displacements(settings.elastic_vox, batch, [depth], 1, generator, device)
        crops = resample_crops(crops, matrices, bend, along)
    return _with_noise(_with_contrast(crops, settings, generator), noise)


def draw_affines(settings: Augmentation, batch: int, axes: int, generator: torch.Generator) -> torch.Tensor:
    """One random matrix per sample, which takes an output point to the input point that it shows.

    Points are (x, y) or (x, y, z) along (col, row, index), in half sides: -1 and 1 are the outer edges of the
    first and last voxel, as `affine_grid(align_corners=False)` has them. A matrix is `scale_and_flip @
    rotation` with the shift as its LAST COLUMN. A positive shift moves the picture towards lower indices.

    Args:
        settings: how far.
        batch: samples.
        axes: 2 or 3.
        generator: draws on its own device; a CPU generator gives equal matrices whatever the batch's device.

    Returns:
        (batch, axes, axes + 1) float32, on the generator's device.
    """
    device = generator.device
    # All numbers are always drawn, so that switching one kind off leaves the others as they were.
    uniform = torch.rand((batch, 3 * axes + 1), generator=generator, device=device)
    flips, shifts, scales = (2 * uniform[:, :-1] - 1).view(batch, 3, axes).unbind(1)
    factors = 1 + settings.scale * scales
    if settings.flip:
        factors = torch.where(flips < 0, -factors, factors)
    angles = 2 * torch.pi * uniform[:, -1] * settings.rotate
    rotation = torch.eye(axes, device=device).repeat(batch, 1, 1)
    rotation[:, 0, 0] = rotation[:, 1, 1] = angles.cos()
    rotation[:, 1, 0] = angles.sin()
    rotation[:, 0, 1] = -angles.sin()
    return torch.cat([factors[:, :, None] * rotation, settings.shift * shifts[:, :, None]], dim=2)


def draw_displacements(
    sigma_vox: float,
    batch: int,
    sizes: Sequence[int],
    directions: int,
    generator: torch.Generator,
    device: torch.device,
) -> torch.Tensor | None:
    """Smooth random displacements, drawn anew for every sample; None, and nothing drawn, for sigma 0.

    Gaussian numbers on a control grid of `KNOT_VOX` become a field by cubic B-splines, so that it has a continuous
    curvature. The weights of each voxel are scaled to unit length: independent numbers then give every voxel the
    same sigma, wherever it lies between the control points.

    Args:
        sigma_vox: standard deviation of a displacement along one axis, voxels.
        batch: samples.
        sizes: of the field along each of its axes, voxels.
        directions: displacements of one place, independent of each other.
        generator: draws the control points on its own device; a CPU generator gives equal fields on every device.
        device: where the field is wanted.

    Returns:
        (batch, directions, *sizes) float32, voxels.
    """
    if not sigma_vox:
        return None
    splines = [_spline_weights(size) for size in sizes]
    knots = [spline.shape[1] for spline in splines]
    control = torch.randn((batch, directions, *knots), generator=generator, device=generator.device)
    field = (sigma_vox * control).to(device, non_blocking=True)
    with torch.autocast(device.type, enabled=False):
        for spline in splines:  # the axis in front is replaced and goes to the back: after all of them, the old order
            field = field.movedim(2, -1) @ spline.T.to(device, non_blocking=True)
    return field


def _spline_weights(size: int) -> torch.Tensor:
    """Cubic B-spline weights of the control points at each voxel, (size, knots) float32, rows of unit length."""
    knots = (size - 1) // KNOT_VOX + 4
    position = torch.arange(size, dtype=torch.float64)[:, None] / KNOT_VOX + 1  # the first knot lies outside
    away = (position - torch.arange(knots)).abs()
    near = 2 / 3 - away**2 + away**3 / 2
    weights = torch.where(away < 1, near, (2 - away).clamp(min=0) ** 3 / 6)
    return (weights / weights.norm(dim=1, keepdim=True)).float()


def resample_in_plane(pictures: torch.Tensor, matrices: torch.Tensor, bend: torch.Tensor | None = None) -> torch.Tensor:
    """Resample each picture bilinearly; what lies outside repeats the border.

    Args:
        pictures: (B, C, H, W) float; a sample's channels move together. H = W, or a rotation also shears.
        matrices: (B, 2, 3) float32, as `draw_affines` makes them, on the same device.
        bend: (B, 2, H, W) float, voxels along (col, row), on the same device: each output pixel shows what lies
            so much further on in the input than its matrix says.

    Returns:
        (B, C, H, W), a new tensor.
    """
    # Autocast would make the matrices bfloat16: eight bits tell positions half a voxel apart from each other.
    with torch.autocast(pictures.device.type, enabled=False):
        grid = affine_grid(matrices.to(pictures.dtype), list(pictures.shape), align_corners=False)
        if bend is not None:
            height, width = pictures.shape[2:]
            half_sides = torch.stack([bend[:, 0] * (2 / width), bend[:, 1] * (2 / height)], dim=-1)
            grid = grid + half_sides.to(grid.dtype)
        return grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def resample_crops(
    crops: torch.Tensor,
    matrices: torch.Tensor,
    bend: torch.Tensor | None = None,
    along: torch.Tensor | None = None,
) -> torch.Tensor:
    """Resample each crop trilinearly, plane and index axis apart; what lies outside repeats the border.

    The matrices must not mix z with x and y; those of `draw_affines` never do. Then a trilinear weight is the
    product of an in-plane weight and one along z, and doing one after the other equals the 3D `grid_sample`,
    but several times faster: a plane's weights are found once for all D slices.

    Args:
        crops: (B, 1, D, H, W) float. H = W, or a rotation also shears.
        matrices: (B, 3, 4) float32, as `draw_affines` makes them, on the same device.
        bend: (B, 2, H, W) float, voxels along (col, row), the same in all slices: see `resample_in_plane`.
        along: (B, 1, D) float, voxels along the index axis, the same in all of a slice.

    Returns:
        (B, 1, D, H, W), a new tensor.
    """
    in_plane = torch.cat([matrices[:, :2, :2], matrices[:, :2, 3:]], dim=2)  # a list as index would wait for a GPU
    planes = resample_in_plane(crops[:, 0], in_plane, bend)
    depth = planes.shape[1]
    out = (2 * torch.arange(depth, device=crops.device) + 1) / depth - 1  # voxel centres in half sides
    source = matrices[:, 2, 2:3] * out + matrices[:, 2, 3:4]
    index = ((source + 1) * depth - 1) / 2  # (B, D) fractional slices
    if along is not None:
        index = index + along[:, 0]
    index = index.clamp(0, depth - 1)
    lower = index.long()
    upper = (lower + 1).clamp(max=depth - 1)
    sample = torch.arange(len(planes), device=crops.device)[:, None]
    weight = (index - lower).to(planes.dtype)[:, :, None, None]
    return torch.lerp(planes[sample, lower], planes[sample, upper], weight)[:, None]


def draw_noise(images: torch.Tensor, sigma_hu: float, generator: torch.Generator) -> torch.Tensor | None:
    """Gaussian noise for every voxel; None, and nothing drawn, for sigma 0.

    The noise is drawn on the images' device. A generator of another device gives one number, the seed of a
    generator there; so the noise of a CPU and of a GPU differ.

    Args:
        images: any shape, float; only their shape, dtype and device count.
        sigma_hu: standard deviation, HU.
        generator: on any device.
    """
    if not sigma_hu:
        return None
    if generator.device.type != images.device.type:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        generator = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return noise.mul_(sigma_hu)


def _with_noise(images: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """The images with the noise, in the noise's memory."""
    return images if noise is None else noise.add_(images)


def _with_contrast(images: torch.Tensor, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Scale each image's distance from air, then shift it, by numbers drawn for each sample; see `Augmentation`."""
    if not settings.scale_hu and not settings.shift_hu:
        return images
    uniform = torch.rand((2, len(images)), generator=generator, device=generator.device).to(images.device, images.dtype)
    scales, shifts = (2 * uniform - 1).view(2, -1, *[1] * (images.ndim - 1))
    gain = settings.scale_hu * scales
    return torch.addcmul(settings.shift_hu * shifts - AIR_HU * gain, images, 1 + gain)
