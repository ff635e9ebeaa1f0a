"""Two boxes of air in a body are lungs, and lie in the scene where they lie in the patient."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lungml.ct import Scan
from lungml.geometry import Grid, as_triple, irc_to_xyz
from lungml.plots import SKY
from lungml.rendering import RenderingError
from lungml.scan_marks import Kind, Mark
from lungml.volume_figure import (
    MARGIN_XYZ_MM,
    SHELL_OPACITY,
    UNKNOWN_DIAMETER_MM,
    draw_volume,
    large_parts,
    scene_of,
)

SHAPE = (60, 80, 100)
STRAIGHT = Grid(shape_irc=SHAPE, spacing_xyz=(3.0, 3.0, 3.0), origin_xyz=(-150, -120, 40))
FLIPPED = Grid(
    shape_irc=SHAPE,
    spacing_xyz=(3.0, 3.0, 3.0),
    origin_xyz=(150, 120, 40),
    direction=((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
)


def chest(grid: Grid = STRAIGHT) -> Scan:
    """Two lungs of 30 x 50 x 25 voxels of 3 mm: a litre each."""
    hu = np.full(SHAPE, 40, dtype=np.int16)
    hu[10:40, 15:65, 15:40] = -850
    hu[10:40, 15:65, 60:85] = -850
    return Scan(series_uid="1.2", hu=hu, grid=grid)


def mark(irc: tuple[float, float, float], kind: Kind, diameter_mm: float = 20.0, grid: Grid = STRAIGHT) -> Mark:
    number = None if kind.startswith("truth") else 1
    return Mark(center_xyz=as_triple(irc_to_xyz(irc, grid)), diameter_mm=diameter_mm, kind=kind, number=number)


@pytest.mark.parametrize("grid", [STRAIGHT, FLIPPED])
def test_a_scene_lies_where_the_patient_does(grid: Grid) -> None:
    scene, note = scene_of(chest(grid), [mark((25, 40, 27), "malignant", grid=grid)])
    assert note == ""
    voxels = np.argwhere(scene.lungs)
    assert (voxels.min(axis=0).tolist(), voxels.max(axis=0).tolist()) == ([10, 15, 15], [39, 64, 84])
    places = voxels @ scene.to_xyz[:, :3].T + scene.to_xyz[:, 3]
    assert np.allclose(places, irc_to_xyz(voxels, grid))
    assert scene.low_xyz.tolist() == pytest.approx(places.min(axis=0) - MARGIN_XYZ_MM)
    assert scene.high_xyz.tolist() == pytest.approx(places.max(axis=0) + MARGIN_XYZ_MM)


def test_a_scene_of_fine_voxels_is_coarse() -> None:
    fine = Grid(shape_irc=SHAPE, spacing_xyz=(1.0, 1.0, 3.0), origin_xyz=(0, 0, 0))
    scene, note = scene_of(chest(fine), [])
    assert scene.lungs.shape == (60, 27, 34)
    assert scene.to_xyz.tolist() == [[0, 0, 3, 0], [0, 3, 0, 0], [3, 0, 0, 0]]
    assert "the lungs in the picture may not be all of them" in note  # 220 ml are too little for a chest


def test_filtered_findings_are_left_out_and_the_truth_is_a_shell_around_findings() -> None:
    marks = [mark((25, 40, 27), "benign", float("nan")), mark((25, 40, 70), "filtered"), mark((25, 40, 27), "truth")]
    scene, _ = scene_of(chest(), marks)
    assert scene.diameters_mm.tolist() == [UNKNOWN_DIAMETER_MM, 20.0]
    assert scene.colors[0].tolist() == pytest.approx([*to_rgb(SKY), 1.0])
    assert scene.colors[:, 3].tolist() == [1.0, SHELL_OPACITY]
    alone, _ = scene_of(chest(), marks[2:])
    assert alone.colors[:, 3].tolist() == [1.0]


def test_gas_in_the_bowel_is_no_lung() -> None:
    region = np.zeros((10, 10, 30), dtype=np.bool_)
    region[:, :, :10] = region[:5, :, 15:20] = True
    lungs = region.copy()
    region[8:, :, 25:] = True  # a tenth of the largest part
    assert large_parts(region).tolist() == lungs.tolist()
    assert not large_parts(np.zeros((2, 2, 2), dtype=np.bool_)).any()


def test_nothing_to_draw_is_one_line() -> None:
    solid = Scan(series_uid="1.2", hu=np.full(SHAPE, 40, dtype=np.int16), grid=STRAIGHT)
    with pytest.raises(RenderingError, match="no lungs are seen and no nodule is known"):
        scene_of(solid, [mark((25, 40, 27), "filtered")])
    scene, _ = scene_of(solid, [mark((25, 40, 27), "truth")])
    assert not scene.lungs.any()
    thin = Scan(
        series_uid="1.2",
        hu=chest().hu[20:22],
        grid=Grid(shape_irc=(2, 80, 100), spacing_xyz=(3, 3, 2.5), origin_xyz=(0, 0, 0)),
    )
    with pytest.raises(RenderingError, match="5 x 240 x 300 mm are too thin for a picture in 3D"):
        scene_of(thin, [])


def test_the_views_share_one_scale_and_tell_what_is_what() -> None:
    marks = [mark((25, 40, 27), "truth_malignant"), mark((25, 40, 70), "filtered")]
    scene, _ = scene_of(chest(), marks)
    views = [np.zeros((height, width, 3), dtype=np.uint8) for width, height in scene.sizes()]
    figure = draw_volume(chest(), scene, views, marks)
    wide, tall = figure.get_size_inches()
    spans = scene.high_xyz - scene.low_xyz
    scales = []
    for axes, across in zip(figure.axes, (spans[0], spans[1])):
        box = axes.get_position()
        scales += [box.width * wide / across, box.height * tall / spans[2]]
    assert scales == pytest.approx([scales[0]] * 4)
    said = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"R", "L", "A", "P", "S", "I"} <= said
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lungs", "truth, malignant"]
    foot = [text.get_text() for text in figure.texts]
    assert {"Filtered findings are not shown (1)", "Not for clinical use.", "Series 1.2"} <= set(foot)
