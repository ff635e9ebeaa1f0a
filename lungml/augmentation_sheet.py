"""What does training make of this crop? Each change alone, and all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from lungml.augment import Augmentation, augment_crops, draw_affines
from lungml.crops import CROP_SHAPE, clip_hu, cut_box
from lungml.ct import Scan
from lungml.geometry import xyz_to_irc
from lungml.pictures import middle_slice
from lungml.plots import INK
from lungml.print_page import (
    EDGE_IN,
    GAP_IN,
    PANEL_HEAD_IN,
    TIMES,
    WIDTH_IN,
    WINDOWS,
    WORDS_PT,
    Window,
    minus,
    new_axes,
    new_page,
    words_of,
)

SHEET_COLUMNS = 3
TRIES = 64  # for a draw that flips in plane: 3 of 4 do


def draw_augmented(
    scan: Scan,
    center_xyz: tuple[float, float, float],
    settings: Augmentation,
    *,
    recipe: str,
    versions: int = 3,
    seed: int = 0,
    window: Window = "lung",
) -> Figure:
    """The crop at a place as the classifiers' training changes it: in one way at a time, then in all of them.

    Args:
        scan: the scan.
        center_xyz: mm (LPS), inside the scan.
        settings: the recipe's.
        recipe: its name.
        versions: how many with all changes.
        seed: of the changes.
        window: which HU become grey.
    """
    pictures = augmented_crops(scan, center_xyz, settings, versions=versions, seed=seed)
    _, row_mm, col_mm = scan.grid.spacing_irc.tolist()
    rows = -(-len(pictures) // SHEET_COLUMNS)
    width = (WIDTH_IN - 2 * EDGE_IN - (SHEET_COLUMNS - 1) * GAP_IN) / SHEET_COLUMNS
    height = width * CROP_SHAPE[1] * row_mm / (CROP_SHAPE[2] * col_mm)
    low, high = WINDOWS[window]
    foot = [
        minus(f"Middle slices of {TIMES.join(map(str, CROP_SHAPE))} voxels at {words_of(center_xyz)}"),
        f"{describe(settings)}; seed {seed}",
        minus(f"{window.capitalize()} window, {low} to {high} HU"),
    ]
    line = PANEL_HEAD_IN + height
    title = f"Augmentation of a crop (recipe: {recipe})"
    figure, bottom = new_page(title, scan.series_uid, foot, rows * line + (rows - 1) * GAP_IN, [])
    for place, (name, crop) in enumerate(pictures):
        row, column = divmod(place, SHEET_COLUMNS)
        up = bottom + (rows - 1 - row) * (line + GAP_IN)
        axes = new_axes(figure, EDGE_IN + column * (width + GAP_IN), up, width, height)
        axes.imshow(middle_slice(crop), cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect="auto")
        axes.set_title(name, fontsize=WORDS_PT, color=INK, pad=3)
    return figure


def augmented_crops(
    scan: Scan, center_xyz: tuple[float, float, float], settings: Augmentation, *, versions: int, seed: int
) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """The crop at a place, with each change alone, and with all of them: names and (index, row, col) float32 HU.

    The first with all has just the flip, shift, scale and rotation that are shown alone. The draw is the seed's first
    that flips in plane, where the recipe flips: a flip along the index axis could not be seen.
    """
    crop = clip_hu(cut_box(scan.hu, xyz_to_irc(center_xyz, scan.grid), CROP_SHAPE)).astype(np.float32)
    batch = torch.from_numpy(crop)[None, None]
    state = _flipping_state(settings, seed)
    pictures = [("original", crop)]
    for name, alone in kinds_alone(settings):
        pictures.append((name, augment_crops(batch, alone, _generator(state))[0, 0].numpy()))
    generator = _generator(state)
    for number in range(1, versions + 1):
        pictures.append((f"all, {number}", augment_crops(batch, settings, generator)[0, 0].numpy()))
    return pictures


def kinds_alone(settings: Augmentation) -> list[tuple[str, Augmentation]]:
    """Each change that some settings make, alone, with its name."""
    nothing = Augmentation()
    kinds = {
        "flip": replace(nothing, flip=settings.flip),
        "shift": replace(nothing, shift=settings.shift),
        "scale": replace(nothing, scale=settings.scale),
        "rotation": replace(nothing, rotate=settings.rotate),
        "noise": replace(nothing, noise_hu=settings.noise_hu),
        "elastic": replace(nothing, elastic_vox=settings.elastic_vox),
        "contrast": replace(nothing, scale_hu=settings.scale_hu),
        "brightness": replace(nothing, shift_hu=settings.shift_hu),
    }
    return [(name, alone) for name, alone in kinds.items() if alone != nothing]


def describe(settings: Augmentation) -> str:
    """How far some settings go, in words."""
    said = {
        "flips": settings.flip,
        f"shift ±{settings.shift:.0%} of half a side": settings.shift,
        f"scale ±{settings.scale:.0%}": settings.scale,
        "any rotation": settings.rotate,
        f"noise {settings.noise_hu:g} HU": settings.noise_hu,
        f"elastic {settings.elastic_vox:g} voxels": settings.elastic_vox,
        f"contrast ±{settings.scale_hu:.0%}": settings.scale_hu,
        f"brightness ±{settings.shift_hu:g} HU": settings.shift_hu,
    }
    text = ", ".join(words for words, there in said.items() if there) or "no change"
    return text[0].upper() + text[1:]


def _flipping_state(settings: Augmentation, seed: int) -> torch.Tensor:
    """The state of a generator that comes next to draw a change with a flip in plane."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(TRIES):
        state = generator.get_state()
        matrix = draw_affines(replace(Augmentation(), flip=settings.flip), 1, 3, generator)[0]
        if not settings.flip or min(float(matrix[0, 0]), float(matrix[1, 1])) < 0:
            break
    return state


def _generator(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator
