from pathlib import Path

import pytest

from lungml.luna import Nodule
from lungml.tables import TableError
from lungml.textures import TEXTURES_CSV, Textured, match_textures, read_textures, texture_of, write_textures

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm,texture\n"


def nodule(x: float) -> Nodule:
    return Nodule(series_uid="s", center_xyz=(x, 0, 0), diameter_mm=5, malignant=False, ratings=())


def row(x: float, texture: str) -> Textured:
    return Textured(series_uid="s", center_xyz=(x, 0, 0), diameter_mm=5, texture=texture)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratings", "texture"),
    [
        ([1], "ground-glass"),
        ([2], "ground-glass"),
        ([1, 2, 5, 1], "ground-glass"),  # a mean would say 2.25
        ([2, 3], "part-solid"),
        ([3], "part-solid"),
        ([3, 4], "part-solid"),
        ([1, 5], "part-solid"),
        ([4], "solid"),
        ([5, 5, 1], "solid"),
    ],
)
def test_the_median_rating_decides(ratings: list[int], texture: str) -> None:
    assert texture_of(ratings) == texture
    assert texture_of(ratings[::-1]) == texture


@pytest.mark.parametrize("ratings", [[], [0], [3, 6]])
def test_a_rating_off_the_scale_is_refused(ratings: list[int]) -> None:
    with pytest.raises(ValueError, match=r"are not one or more of 1\.\.5"):
        texture_of(ratings)


def test_a_texture_goes_to_the_nodule_at_its_place() -> None:
    rows = [row(10.0009, "part-solid"), row(20, "ground-glass"), row(30.0011, "solid")]
    assert match_textures([nodule(20), nodule(10), nodule(30)], rows) == ("ground-glass", "part-solid", "")
    assert match_textures([nodule(20)], []) == ("",)
    assert match_textures([], rows) == ()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rows = (row(-128.6994211, "solid"), row(0.1 + 0.2, "ground-glass"))
    write_textures(tmp_path / TEXTURES_CSV, rows)
    assert read_textures(tmp_path / TEXTURES_CSV) == rows
    write_textures(tmp_path / TEXTURES_CSV, [])
    assert read_textures(tmp_path / TEXTURES_CSV) == ()


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("s,1,2,3,4,Solid\n", "line 2: texture is none of solid, part-solid, ground-glass"),
        ("s,1,2,3,4,solid\n\ns,1,2,3,5,part-solid\n", "line 4: a nodule that an earlier line names already"),
        ("s,1,2,far,4,solid\n", "line 2: coordZ is not a finite number"),
    ],
)
def test_a_damaged_table_names_its_line(tmp_path: Path, lines: str, problem: str) -> None:
    (tmp_path / TEXTURES_CSV).write_text(HEADER + lines)
    with pytest.raises(TableError) as refused:
        read_textures(tmp_path / TEXTURES_CSV)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)
