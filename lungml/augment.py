"""What else could this nodule have looked like, flipped, shifted, scaled, turned and with other noise?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import affine_grid, grid_sample

NOISE_HU = 25.0  # the report's sigma


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a picture may be changed; without arguments not at all.

    Attributes:
        flip: mirror each axis with probability 1/2.
        shift: largest shift along each axis, in half sides (0.1 of a 48 voxel side is 2.4 voxels).
        scale: each axis is scaled by a factor from 1 - scale to 1 + scale.
        rotate: turn in plane, by any angle.
        noise_hu: sigma of the Gaussian noise added to every voxel of the image, HU.
    """

    flip: bool = False
    shift: float = 0.0
    scale: float = 0.0
    rotate: bool = False
    noise_hu: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 1 or not 0 <= self.scale < 1 or not 0 <= self.noise_hu < float("inf"):
            raise ValueError(f"no augmentation has {self.shift=}, {self.scale=}, {self.noise_hu=}")

    @property
    def moves(self) -> bool:
        """Whether pictures are resampled at all."""
        return self.flip or self.rotate or self.shift > 0 or self.scale > 0


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
    clipped, and the work is done on the batch's device.

    Args:
        slabs: (B, C, H, W) float, HU; the context slices are channels and move together.
        masks: (B, 1, H, W) float, 0 or 1; resampled like the image, then 1 where above 0.5.
        settings: how far.
        generator: see `draw_affines` and `add_noise`.

    Returns:
        slabs and masks of the same shapes and dtypes, noise on the slabs only.
    """
    if settings.moves:
        matrices = draw_affines(settings, len(slabs), 2, generator).to(slabs.device)
        both = resample_in_plane(torch.cat([slabs, masks.to(slabs.dtype)], dim=1), matrices)
        slabs, masks = both[:, :-1], (both[:, -1:] > 0.5).to(masks.dtype)
    return add_noise(slabs, settings.noise_hu, generator), masks


@torch.no_grad()
def augment_crops(crops: torch.Tensor, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Change each crop in its own way: in plane and along the index axis, rotated in plane only.

    The argument is not written to; settings that change nothing give the same tensor back. Nothing is
    clipped, and the work is done on the batch's device.

    Args:
        crops: (B, 1, D, H, W) float, HU.
        settings: how far.
        generator: see `draw_affines` and `add_noise`.

    Returns:
        (B, 1, D, H, W), the same dtype.
    """
    if settings.moves:
        crops = resample_crops(crops, draw_affines(settings, len(crops), 3, generator).to(crops.device))
    return add_noise(crops, settings.noise_hu, generator)


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


def resample_in_plane(pictures: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Resample each picture bilinearly; what lies outside repeats the border.

    Args:
        pictures: (B, C, H, W) float; a sample's channels move together. H = W, or a rotation also shears.
        matrices: (B, 2, 3) float32, as `draw_affines` makes them, on the same device.

    Returns:
        (B, C, H, W), a new tensor.
    """
    grid = affine_grid(matrices.to(pictures.dtype), list(pictures.shape), align_corners=False)
    return grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def resample_crops(crops: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Resample each crop trilinearly, plane and index axis apart; what lies outside repeats the border.

    The matrices must not mix z with x and y; those of `draw_affines` never do. Then a trilinear weight is the
    product of an in-plane weight and one along z, and doing one after the other equals the 3D `grid_sample`,
    but several times faster: a plane's weights are found once for all D slices.

    Args:
        crops: (B, 1, D, H, W) float. H = W, or a rotation also shears.
        matrices: (B, 3, 4) float32, as `draw_affines` makes them, on the same device.

    Returns:
        (B, 1, D, H, W), a new tensor.
    """
    planes = resample_in_plane(crops[:, 0], matrices[:, :2, [0, 1, 3]])
    depth = planes.shape[1]
    out = (2 * torch.arange(depth, device=crops.device) + 1) / depth - 1  # voxel centres in half sides
    source = matrices[:, 2, 2:3] * out + matrices[:, 2, 3:4]
    index = (((source + 1) * depth - 1) / 2).clamp(0, depth - 1)  # (B, D) fractional slices
    lower = index.long()
    upper = (lower + 1).clamp(max=depth - 1)
    sample = torch.arange(len(planes), device=crops.device)[:, None]
    weight = (index - lower).to(planes.dtype)[:, :, None, None]
    return torch.lerp(planes[sample, lower], planes[sample, upper], weight)[:, None]


def add_noise(images: torch.Tensor, sigma_hu: float, generator: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise to every voxel; sigma 0 gives the same tensor back.

    The noise is drawn on the images' device. A generator of another device gives one number, the seed of a
    generator there; so the noise of a CPU and of a GPU differ.

    Args:
        images: any shape, float, HU.
        sigma_hu: standard deviation.
        generator: on any device.
    """
    if not sigma_hu:
        return images
    if generator.device.type != images.device.type:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        generator = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + sigma_hu * noise
