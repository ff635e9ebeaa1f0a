"""Is an annotated nodule solid, part-solid or ground-glass?

LUNA16 does not say; LIDC's readers do, and a drawn nodule knows. The answers lie in a table of their own beside
LUNA16's, so that nothing that was made from those changes with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, Protocol, get_args

from lungml.files import write_csv_atomic
from lungml.tables import SERIES_COLUMN, read_table, refuse_where

Texture = Literal["solid", "part-solid", "ground-glass"]
TEXTURES: tuple[Texture, ...] = get_args(Texture)
TEXTURES_CSV = "textures.csv"
TEXTURE_COLUMNS = (SERIES_COLUMN, "coordX", "coordY", "coordZ", "diameter_mm", "texture")
SAME_PLACE_MM = 1e-3  # LUNA16's tables write one place with 9 or with 17 digits
# LIDC's scale has names for 1 (non-solid, ground-glass), 3 (part-solid, mixed) and 5 (solid); McNitt-Gray et al. 2007,
# Acad. Radiol. 14:1464. What lies between two of them goes to the pure one: part-solid is what most readers call so.
GROUND_GLASS_RATING, SOLID_RATING = 2, 4


class _Placed(Protocol):
    @property
    def center_xyz(self) -> tuple[float, float, float]: ...


@dataclass(frozen=True, kw_only=True)
class Textured:
    """One row of textures.csv: a nodule's place, mm LPS, and its texture."""

    series_uid: str
    center_xyz: tuple[float, float, float]
    diameter_mm: float
    texture: Texture


def texture_of(ratings: Sequence[int]) -> Texture:
    """What the median of the readers' texture ratings means: to 2 ground-glass, from 4 solid, between part-solid.

    Raises:
        ValueError: no rating, or one outside 1..5.
    """
    if not ratings or not all(1 <= rating <= 5 for rating in ratings):
        raise ValueError(f"texture ratings {list(ratings)} are not one or more of 1..5")
    middle = median(ratings)
    if middle <= GROUND_GLASS_RATING:
        return "ground-glass"
    return "solid" if middle >= SOLID_RATING else "part-solid"


def match_textures(nodules: Sequence[_Placed], textured: Sequence[Textured]) -> tuple[Texture | Literal[""], ...]:
    """The texture of each nodule of a scan, in their order: of the row at its place, to 0.001 mm; "" without one.

    Args:
        nodules: of one scan.
        textured: rows of the same scan.
    """
    found: list[Texture | Literal[""]] = []
    for nodule in nodules:
        rows = [row for row in textured if math.dist(row.center_xyz, nodule.center_xyz) <= SAME_PLACE_MM]
        found.append(rows[0].texture if rows else "")
    return tuple(found)


def read_textures(path: Path) -> tuple[Textured, ...]:
    """Read textures.csv.

    Raises:
        TableError: it is missing or malformed, holds another texture, or names a nodule twice.
    """
    *numbers, texture = TEXTURE_COLUMNS[1:]
    table = read_table(path, numbers, [texture])
    table[texture] = table[texture].str.strip()
    refuse_where(~table[texture].isin(TEXTURES), path, f"texture is none of {', '.join(TEXTURES)}")
    repeated = table.duplicated([*TEXTURE_COLUMNS[:4]])
    refuse_where(repeated, path, "a nodule that an earlier line names already")
    return tuple(
        Textured(series_uid=series_uid, center_xyz=(x, y, z), diameter_mm=diameter_mm, texture=name)
        for series_uid, x, y, z, diameter_mm, name in zip(*(table[column].tolist() for column in TEXTURE_COLUMNS))
    )


def write_textures(path: Path, rows: Iterable[Textured]) -> None:
    """Write textures.csv; floats keep their exact value.

    Raises:
        OSError: the file cannot be written; it is then as before.
    """
    lines = [(row.series_uid, *row.center_xyz, row.diameter_mm, row.texture) for row in rows]
    write_csv_atomic(path, TEXTURE_COLUMNS, lines)
