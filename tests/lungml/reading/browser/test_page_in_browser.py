from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lungml.geometry import Grid, as_triple, irc_to_xyz
from lungml.reading.correction_schema import parse_corrections
from lungml.reading.pixels import upright
from lungml.reading.record import Reading
from tests.lungml.reading.browser.conftest import Show, Shown
from tests.lungml.reading.page_readings import (
    BALL_HU,
    GRID,
    LUNG_HU,
    MADE,
    UID,
    chest,
    compared_reading,
    finding_at,
    marked_balls,
    opinion_of,
    reading_with_truth,
    small_reading,
)

pytestmark = pytest.mark.slow
REFUSE_STORAGE = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("no", "SecurityError"); },
});"""
BLUR_CANVAS = """const read = CanvasRenderingContext2D.prototype.getImageData;
CanvasRenderingContext2D.prototype.getImageData = function (...box) {
  const picture = read.apply(this, box);
  picture.data[0] ^= 1;
  return picture;
};"""
FULL_STORAGE = """Storage.prototype.setItem = function () { throw new DOMException("full", "QuotaExceededError"); };"""
HOSTILE = "</script><img src=x onerror=alert(1)>"
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")


def places(reading: Reading, opinion: int = 0) -> list[tuple[float, float, float]]:
    return [finding.center_xyz for finding in reading.opinions[opinion].findings]


def kept(shown: Shown) -> int:
    return shown.luna("counts[0].kept")


# ---------------------------------------------------------------- pictures
def test_wheel_keys_and_slider_scroll(show: Show) -> None:
    shown = show(small_reading())
    assert shown.luna("state.scan[0]") == 12  # opens at the surest finding
    shown.press("ArrowUp", "ArrowUp")
    assert shown.luna("state.scan[0]") == 14
    shown.press("ArrowDown")
    assert shown.luna("state.scan[0]") == 13
    shown.press("PageDown")
    assert shown.luna("state.scan[0]") == 3
    shown.press("Home")
    assert shown.luna("state.scan[0]") == 23  # the head
    shown.press("End")
    assert shown.luna("state.scan[0]") == 0
    shown.page.locator("#axial canvas").hover()
    shown.page.mouse.wheel(0, -100)
    assert shown.luna("state.scan[0]") == 1
    shown.page.locator("#stack").fill("7")
    assert shown.luna("state.scan[0]") == 7
    shown.page.locator("#coronal canvas").focus()
    row = shown.luna("state.scan[1]")
    shown.press("ArrowDown")
    assert shown.luna("state.scan[1]") == row + 1
    assert shown.luna("state.scan[0]") == 7


def test_windows_show_their_greys(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    shown.press("h", "x")  # no marks, no cross
    for key, low, high in (("1", -1350, 150), ("2", -160, 240), ("3", -450, 1050)):
        shown.press(key)
        assert shown.page.locator(f"#window-{key}").get_attribute("aria-pressed") == "true"
        grey = shown.color("axial", places(reading)[0])
        assert grey == pytest.approx([255 * (40 - low) / (high - low)] * 3, abs=4 * 255 / (high - low) * 4)
        lung = shown.color("axial", as_triple(irc_to_xyz((12, 10, 60), GRID)))
        assert lung == pytest.approx([max(0, 255 * (LUNG_HU - low) / (high - low))] * 3, abs=5)


def tilted(degrees: float, flip: tuple[int, int, int] = (1, 1, 1), roll: bool = False) -> tuple[tuple[float, ...], ...]:
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    matrix = about_x @ about_z * np.array(flip)
    return tuple(as_triple(row) for row in (matrix[:, [2, 0, 1]] if roll else matrix))


@pytest.mark.parametrize(
    "direction",
    [tilted(0), tilted(0, (-1, 1, -1)), tilted(15, (1, -1, 1)), tilted(20, (-1, -1, -1)), tilted(8, roll=True)],
    ids=["plain", "mirrored", "tilted and prone", "tilted and turned round", "sagittal slices"],
)
def test_a_bright_ball_lies_where_its_ring_is_in_all_planes(
    show: Show, direction: tuple[tuple[float, float, float], ...]
) -> None:
    grid = replace(GRID, shape_irc=(30, 44, 40), spacing_xyz=(1.3, 1.0, 1.9), direction=direction)
    point = as_triple(irc_to_xyz((9, 30, 12), grid))
    hu = chest(grid, [(point, 9.0)], 300)
    finding = finding_at(point, grid, 9.0)
    shown = show(
        Reading(series_uid=UID, hu=hu, grid=grid, opinions=(opinion_of([finding], marked_balls(hu)),), made=MADE)
    )
    shown.press("x")
    for plane in ("axial", "coronal", "sagittal"):
        middle = shown.color(plane, point)
        assert middle == [255, 255, 255], plane
        radius = px_per_mm(shown, plane, grid) * 4.5
        # The ring, to the right of the centre, is blue; three radii away is lung.
        assert blue_ring(shown, plane, point, radius), plane
        assert max(shown.color(plane, point, down=2.2 * radius)) < 110, plane
    assert shown.luna("state.scan") == pytest.approx([9, 30, 12], abs=0.01)
    shown.press("u", "h", "h")
    for plane in ("axial", "coronal", "sagittal"):
        red, green, _ = shown.color(plane, point)
        assert green > red + 10, plane  # the mask's veil


def px_per_mm(shown: Shown, plane: str, grid: Grid) -> float:
    origin = np.array(grid.origin_xyz)
    axes = np.asarray(grid.direction)
    ends = [shown.luna(f"screenOf('{plane}', {(origin + 10 * axes[:, k]).tolist()})") for k in range(3)]
    start = shown.luna(f"screenOf('{plane}', {origin.tolist()})")
    return max(float(np.hypot(*np.subtract(end, start))) for end in ends) / 10


def blue_ring(shown: Shown, plane: str, point: tuple[float, float, float], radius: float) -> bool:
    """Whether a ring of the colour of what is kept and benign passes so many pixels to the right of a point."""
    colors = [shown.color(plane, point, right=radius + near) for near in (-1, 0, 1)]
    return any(blue > red + 60 and blue > green for red, green, blue in colors)


def test_left_and_right_front_and_back_head_and_feet_are_where_radiologists_look_for_them(show: Show) -> None:
    for direction in (tilted(0), tilted(0, (-1, 1, -1)), tilted(0, (1, -1, 1)), tilted(0, roll=True)):
        grid = replace(GRID, shape_irc=(20, 20, 20), spacing_xyz=(1.0, 1.0, 1.0), direction=direction)
        middle = np.array(as_triple(irc_to_xyz((9.5, 9.5, 9.5), grid)))
        hu = chest(grid, [(middle, 4.0)])
        shown = show(Reading(series_uid=UID, hu=hu, grid=grid, opinions=(opinion_of([], marked_balls(hu)),), made=MADE))

        def step(
            plane: str, xyz: tuple[float, float, float], page: Shown = shown, start: np.ndarray = middle
        ) -> list[float]:
            there, here = (page.luna(f"screenOf('{plane}', {point.tolist()})") for point in (start + xyz, start))
            return [round(a - b, 3) for a, b in zip(there, here)]

        assert step("axial", (1, 0, 0))[0] > 0  # the patient's left is on the right
        assert step("axial", (0, 1, 0))[1] > 0  # the back is below
        assert step("coronal", (1, 0, 0))[0] > 0
        assert step("coronal", (0, 0, 1))[1] < 0  # the head is above
        assert step("sagittal", (0, 1, 0))[0] > 0  # the front is on the left
        assert step("sagittal", (0, 0, 1))[1] < 0


def test_planes_show_millimetres_alike_along_both_axes(show: Show) -> None:
    shown = show(small_reading())
    for plane, one, other in (("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2)):
        steps = []
        for axis in (one, other):
            ends = np.zeros((2, 3))
            ends[1, axis] = 30
            points = [shown.luna(f"screenOf('{plane}', {end.tolist()})") for end in ends]
            steps.append(float(np.hypot(*np.subtract(*points))))
        assert steps[0] == pytest.approx(steps[1])


def test_a_click_moves_the_cross_in_every_plane(show: Show) -> None:
    shown = show(small_reading())
    point = as_triple(irc_to_xyz((16, 52, 44), GRID))
    shown.page.mouse.click(*shown.screen("axial", point))
    shown.page.mouse.click(*shown.screen("coronal", point))
    assert shown.luna("state.scan") == pytest.approx([16, 52, 44], abs=0.7)
    assert "HU" in shown.page.locator("#where").inner_text()
    assert "do not measure" in shown.page.locator("#lossy").inner_text()


def test_zoom_stays_at_the_pointer_and_resets(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    point = places(reading)[0]
    before = shown.screen("axial", point)
    shown.page.mouse.move(*before)
    shown.page.keyboard.down("Control")
    for _ in range(6):
        shown.page.mouse.wheel(0, -100)
    shown.page.keyboard.up("Control")
    assert shown.screen("axial", point) == pytest.approx(before, abs=6)  # a pointer has whole pixels, magnified 6 times
    edge = as_triple(irc_to_xyz((12, 0, 0), GRID))
    zoomed = shown.screen("axial", edge)
    shown.press("0")
    assert np.hypot(*np.subtract(shown.screen("axial", edge), before)) < 0.6 * np.hypot(*np.subtract(zoomed, before))


# ---------------------------------------------------------------- findings
def test_a_lower_threshold_brings_a_filtered_one_back(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    assert "2 of 5 kept" in shown.page.locator("#counts").inner_text()
    shown.page.mouse.move(0, 0)
    shown.page.locator("#limit-0-nodule").focus()
    shown.press("PageDown", "ArrowDown")  # 0.39
    assert shown.luna("limits[0].nodule") == pytest.approx(0.39)
    assert kept(shown) == 3
    text = shown.page.locator("#counts").inner_text()
    assert "3 of 5 kept" in text
    assert "1 not asked" in text
    row = next(row for row in shown.luna("rows") if row["id"] == "0:3")
    assert row["kind"] == "unasked"
    assert "malignancy not asked" in row["status"]
    shown.page.locator('[data-id="0:3"]').click()
    assert shown.luna("state.scan") == pytest.approx([18, 30, 60], abs=0.01)
    assert "not asked" in shown.page.locator("#detail").inner_text()
    shown.press("o")
    assert shown.luna("limits[0].nodule") == 0.5
    assert kept(shown) == 2


def test_a_click_ends_a_threshold_and_chooses_what_was_clicked(show: Show) -> None:
    shown = show(small_reading())
    shown.page.locator("#limit-0-nodule-number").fill("0.3")
    shown.page.mouse.move(*(sum(pair) for pair in zip((60, 20), box_corner(shown, '[data-id="0:2"]'))))
    shown.page.mouse.down()
    assert kept(shown) == 3
    shown.page.mouse.up()
    assert shown.luna("state.chosen") == "0:2"


def box_corner(shown: Shown, selector: str) -> tuple[float, float]:
    box = shown.page.locator(selector).bounding_box()
    return box["x"], box["y"]


def test_the_malignancy_slider_moves_between_benign_and_malignant(show: Show) -> None:
    shown = show(small_reading())
    assert [row["kind"] for row in shown.luna("rows")] == ["malignant", "benign"]
    shown.page.locator("#limit-0-malignant-number").fill("0.2")
    shown.press("Enter")
    assert [row["kind"] for row in shown.luna("rows")] == ["malignant", "malignant"]  # inclusive
    shown.page.locator("#limit-0-malignant-number").fill("0.81")
    shown.press("Enter")
    assert [row["kind"] for row in shown.luna("rows")] == ["benign", "benign"]


NEAR = (0.4999999, 0.5, 0.5000001, float(np.nextafter(0.5, 0)), float(np.nextafter(0.5, 1)), 0.0, 1.0, 1e-9)


@pytest.mark.parametrize("threshold", [0.5, 0.4999999, 0.0, 1.0, 0.3333333333333333, 1e-9])
def test_the_bundles_own_thresholds_give_the_stages_of_findings_csv(show: Show, threshold: float) -> None:
    reading = small_reading()
    point = places(reading)[0]
    values = sorted({*NEAR, threshold}, reverse=True)
    findings = []
    for nodule in values:
        for malignant in values:
            stage = "filtered" if nodule < threshold else "benign" if malignant < threshold else "malignant"
            found = finding_at(point, GRID, nodule=nodule)
            findings.append(
                replace(found, stage=stage, prob_malignant=np.nan if stage == "filtered" else malignant)  # type: ignore[arg-type]
            )
    opinion = replace(
        reading.opinions[0], findings=tuple(findings), nodule_threshold=threshold, malignant_threshold=threshold
    )
    shown = show(replace(reading, opinions=(opinion,)))
    shown.press("w")
    rows = {int(row["id"].split(":")[1]): row for row in shown.luna("rows")}
    assert [rows[n]["kind"] for n in range(1, len(findings) + 1)] == [finding.stage for finding in findings]
    counts = shown.luna("counts[0]")
    for stage in ("filtered", "benign", "malignant"):
        assert counts[stage] == sum(finding.stage == stage for finding in findings)
    for row in rows.values():  # no reason says of a number that it is below itself
        one, other = re.split(" < ", row["status"].rsplit("malignancy ", 1)[-1].rsplit("nodule ", 1)[-1] + " < -")[:2]
        assert one != other


@pytest.mark.parametrize(("threshold", "counts"), [("0", (5, 2, 0, 3)), ("1", (0, 0, 0, 0))], ids=["all", "none"])
def test_the_ends_of_the_thresholds(show: Show, threshold: str, counts: tuple[int, int, int, int]) -> None:
    shown = show(small_reading())
    for name in ("malignant", "nodule"):
        shown.page.locator(f"#limit-0-{name}-number").fill(threshold)
        shown.press("Enter")
    assert tuple(shown.luna("counts[0]")[key] for key in ("kept", "malignant", "benign", "unasked")) == counts


def test_the_u_net_slider_thins_mask_and_candidates(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    shown.press("h", "x", "u")  # marks off, and on again with the mask
    point = places(reading)[0]
    beside = as_triple(np.add(point, (2.5, 0, 0)))
    shown.press("b", "m")
    veiled = shown.color("axial", beside)
    assert veiled[1] > veiled[0] + 10
    assert "2 of 5 kept" in shown.page.locator("#counts").inner_text()
    shown.page.locator("#limit-0-segmentation-number").fill("0.92")
    shown.press("Enter")
    plain = shown.color("axial", beside)
    assert max(plain) - min(plain) <= 2
    shown.press("w")  # all
    three = next(row for row in shown.luna("rows") if row["id"] == "0:3")
    assert "nodule 0.40 < 0.50" in three["status"]
    shown.page.locator("#limit-0-nodule-number").fill("0.1")
    shown.press("Enter")
    three = next(row for row in shown.luna("rows") if row["id"] == "0:3")
    assert three["kind"] == "filtered"
    assert "U-Net 0.70 < 0.92" in three["status"]


def test_layers_are_switched_one_by_one(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    shown.press("j", "x")  # 2, the benign one
    point = places(reading)[1]
    shown.page.mouse.click(*shown.screen("axial", as_triple(irc_to_xyz((6, 20, 20), GRID))))
    shown.press("k")  # another is chosen: the chosen one is always shown
    shown.page.locator("#stack").fill("6")
    radius = px_per_mm(shown, "axial", GRID) * 4
    assert blue_ring(shown, "axial", point, radius)
    shown.press("b")
    assert not blue_ring(shown, "axial", point, radius)
    assert shown.page.locator("#layer-kept").get_attribute("aria-pressed") == "false"
    shown.press("b")
    assert blue_ring(shown, "axial", point, radius)
    shown.press("h")
    assert not blue_ring(shown, "axial", point, radius)


def test_what_the_reader_said_of_a_filtered_one_stays_in_the_picture(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    shown.press("w", "j", "j", "Shift+B", "k", "x", "c")  # 3 is filtered; candidates are hidden, another is chosen
    shown.page.locator("#stack").fill("18")
    assert blue_ring(shown, "axial", places(reading)[2], px_per_mm(shown, "axial", GRID) * 3)


def test_the_list_is_sorted_filtered_and_walked(show: Show) -> None:
    shown = show(small_reading())
    shown.page.locator("#show-all").click()
    assert [row["id"] for row in shown.luna("rows")] == [f"0:{n}" for n in range(1, 6)]
    shown.page.locator('[data-sort="diameter"]').click()
    assert [row["id"] for row in shown.luna("rows")] == ["0:1", "0:2", "0:3", "0:4", "0:5"]
    shown.page.locator('[data-sort="diameter"]').click()
    # What has no diameter stays last.
    assert [row["id"] for row in shown.luna("rows")] == ["0:4", "0:3", "0:2", "0:1", "0:5"]
    assert shown.page.locator('[role=columnheader][aria-sort="ascending"]').inner_text().startswith("\u2300")
    shown.press("/")
    shown.page.keyboard.type("filtered")
    assert [row["id"] for row in shown.luna("rows")] == ["0:4", "0:3", "0:5"]
    shown.press("Escape", "l", "Home")
    assert shown.luna("state.chosen") == "0:4"
    shown.press("ArrowDown", "ArrowDown")
    assert shown.luna("state.chosen") == "0:5"
    assert shown.luna("state.scan") == pytest.approx([20, 50, 40], abs=0.01)


def test_two_thousand_rows_make_no_two_thousand_nodes(show: Show) -> None:
    reading = small_reading()
    rng = np.random.default_rng(3)
    findings = [
        finding_at(as_triple(irc_to_xyz(rng.uniform((0, 0, 0), (23, 95, 79)), GRID)), GRID, 4.0, float(p), 0.1)
        for p in sorted(rng.uniform(0, 1, 2000), reverse=True)
    ]
    opinion = replace(reading.opinions[0], findings=tuple(findings))
    shown = show(replace(reading, opinions=(opinion,)))
    shown.press("w", "l", "End")
    assert shown.luna("state.chosen") == "0:2000"
    assert shown.page.locator("#rows .row").count() < 40
    assert shown.page.locator("#list").get_attribute("aria-rowcount") == "2001"
    assert shown.page.locator('[data-id="0:2000"]').is_visible()


# ---------------------------------------------------------------- the reader's work
def test_accept_reject_relabel_and_undo(show: Show) -> None:
    shown = show(small_reading())
    shown.press("a")
    assert [(c["kind"], c["finding"]) for c in shown.luna("corrections")] == [("accept", 1)]
    shown.press("Shift+B")
    (only,) = shown.luna("corrections")
    assert (only["kind"], only["label"]) == ("relabel", "benign")
    shown.press("j", "r")
    assert [(c["kind"], c["finding"]) for c in shown.luna("corrections")] == [("relabel", 1), ("reject", 2)]
    assert "2 corrections" in shown.page.locator("#work").inner_text()
    shown.press("Control+z", "Control+z")
    assert [c["kind"] for c in shown.luna("corrections")] == ["accept"]
    shown.press("Control+y")
    assert [c["kind"] for c in shown.luna("corrections")] == ["relabel"]
    assert shown.luna("history") == {"now": 2, "steps": 3}
    shown.press("Control+Shift+Z", "Delete")
    assert [c["finding"] for c in shown.luna("corrections")] == [1]


def test_a_note_stays_whatever_else_is_said(show: Show) -> None:
    shown = show(small_reading())
    shown.press("e")
    shown.page.keyboard.type("beside the <b>fissure</b>")
    shown.press("Control+Enter")
    (only,) = shown.luna("corrections")
    assert (only["kind"], only["text"]) == ("note", "beside the <b>fissure</b>")
    shown.press("r")
    (only,) = shown.luna("corrections")
    assert (only["kind"], only["text"]) == ("reject", "beside the <b>fissure</b>")
    shown.press("Delete")
    (only,) = shown.luna("corrections")
    assert only["kind"] == "note"
    shown.press("e", "Control+a", "Delete", "Escape")
    assert shown.luna("corrections") == []


def test_a_click_ends_a_note_and_does_what_was_clicked(show: Show) -> None:
    shown = show(small_reading())
    shown.press("e")
    shown.page.keyboard.type("seen before")
    shown.page.locator("#detail button", has_text="Accept").click()
    assert [(c["kind"], c["text"]) for c in shown.luna("corrections")] == [("accept", "seen before")]
    shown.press("e", "End")
    shown.page.keyboard.type(", larger now")
    shown.page.locator('[data-id="0:2"]').click()
    assert shown.luna("state.chosen") == "0:2"
    assert [(c["finding"], c["text"]) for c in shown.luna("corrections")] == [(1, "seen before, larger now")]
    shown.press("e")
    shown.page.keyboard.type("kept when the page is left")
    shown.goto()
    assert [c["finding"] for c in shown.luna("corrections")] == [1, 2]


def test_a_missed_nodule_is_added_by_a_click_a_drag_or_a_key(show: Show) -> None:
    shown = show(small_reading())
    point = as_triple(irc_to_xyz((12, 20, 60), GRID))
    shown.press("n")
    shown.page.mouse.click(*shown.screen("axial", point))
    (added,) = shown.luna("corrections")
    assert (added["kind"], added["finding"], added["diameter_mm"]) == ("add", None, 6.0)
    assert added["center_xyz"] == pytest.approx(point, abs=0.7)
    shown.press("]", "Shift+M")
    (added,) = shown.luna("corrections")
    assert (added["diameter_mm"], added["label"]) == (7.0, "malignant")

    other = as_triple(np.add(point, (-30, 25, 0)))
    edge = as_triple(np.add(other, (5, 0, 0)))
    shown.press("n")
    shown.page.mouse.move(*shown.screen("axial", other))
    shown.page.mouse.down()
    shown.page.mouse.move(*shown.screen("axial", edge), steps=5)
    shown.page.mouse.up()
    assert shown.luna("corrections[1].diameter_mm") == pytest.approx(10, abs=0.6)

    shown.press("n", "Enter")
    assert len(shown.luna("corrections")) == 3
    shown.press("Delete")
    assert len(shown.luna("corrections")) == 2


@pytest.mark.parametrize("moved", [0, 30], ids=["pressed", "dragged"])
@pytest.mark.parametrize(("tool", "key"), [("n", "Escape"), ("d", "Escape"), ("n", "d"), ("n", "v")])
def test_a_press_that_a_key_ends_adds_and_measures_nothing(show: Show, tool: str, key: str, moved: int) -> None:
    shown = show(small_reading())
    x, y = shown.screen("axial", as_triple(irc_to_xyz((12, 20, 60), GRID)))
    shown.press(tool)
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.press(key)
    if moved:
        shown.page.mouse.move(x + moved, y)
    shown.page.mouse.up()
    assert shown.luna("corrections") == []
    assert shown.luna("state.draft") is None
    assert shown.luna("state.caliper") is None


@pytest.mark.parametrize("spacing", [(0.6, 0.8, 2.5), (2.0, 1.0, 0.7)])
@pytest.mark.parametrize("direction", [0, 1, 2], ids=["mirrored", "tilted", "sagittal slices"])
def test_known_distances_are_measured_on_any_grid(
    show: Show, direction: int, spacing: tuple[float, float, float]
) -> None:
    axes = (tilted(0, (-1, 1, -1)), tilted(20, (-1, -1, 1)), tilted(8, roll=True))[direction]
    grid = Grid(shape_irc=(40, 60, 50), spacing_xyz=spacing, origin_xyz=(-30.0, 10.0, -200.0), direction=axes)
    middle = np.asarray(irc_to_xyz((20, 30, 25), grid))
    hu = chest(grid, [(middle, 8.0)])
    finding = finding_at(as_triple(middle), grid)
    shown = show(
        Reading(series_uid=UID, hu=hu, grid=grid, opinions=(opinion_of([finding], marked_balls(hu)),), made=MADE)
    )
    turned = upright(grid).grid
    along = np.asarray(turned.direction)
    for plane, (u, v) in {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}.items():
        for axis in (u, v):
            length = 0.35 * turned.shape_irc[2 - axis] * turned.spacing_xyz[axis]
            shown.press("d")
            shown.page.mouse.move(*shown.screen(plane, as_triple(middle)))
            shown.page.mouse.down()
            shown.page.mouse.move(*shown.screen(plane, as_triple(middle + length * along[:, axis])), steps=3)
            shown.page.mouse.up()
            words = shown.page.locator(".measured").inner_text()
            assert float(re.findall(r"[\d.]+", words)[0]) == pytest.approx(length, abs=0.11), (plane, axis)
            shown.press("Escape")


def test_a_wheel_during_a_measure_leaves_it_in_its_slice(show: Show) -> None:
    shown = show(small_reading())
    x, y = shown.screen("axial", places(small_reading())[0])
    shown.press("d")
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.page.mouse.wheel(0, -100)
    shown.page.mouse.move(x + 40, y)
    shown.page.mouse.up()
    caliper = shown.luna("state.caliper")
    assert caliper["a"][2] == caliper["b"][2]


@pytest.mark.parametrize(("plane", "axis"), [("axial", 0), ("axial", 1), ("coronal", 2), ("sagittal", 2)])
def test_the_caliper_measures_millimetres(show: Show, plane: str, axis: int) -> None:
    reading = small_reading()
    shown = show(reading)
    start = np.array(places(reading)[0])
    end = start.copy()
    end[axis] += 17.5
    shown.press("d")
    shown.page.mouse.move(*shown.screen(plane, as_triple(start)))
    shown.page.mouse.down()
    shown.page.mouse.move(*shown.screen(plane, as_triple(end)), steps=4)
    shown.page.mouse.up()
    words = shown.page.locator(".measured").inner_text()
    assert float(re.findall(r"[\d.]+", words)[0]) == pytest.approx(17.5, abs=0.5)
    shown.press("s")
    (only,) = shown.luna("corrections")
    assert only["kind"] == "accept"
    assert only["diameter_mm"] == pytest.approx(17.5, abs=0.5)
    assert f"{only['diameter_mm']:.1f} mm" in shown.page.locator("#detail dl").inner_text()


def exported(shown: Shown, folder: Path, *, ask: str = "") -> dict:
    with shown.page.expect_download() as waiting:
        shown.press("Control+s")
        if ask:
            shown.page.keyboard.type(ask)
            shown.press("Enter")
    assert waiting.value.suggested_filename == "corrections.json"
    path = folder / "corrections.json"
    waiting.value.save_as(path)
    assert parse_corrections(path.read_bytes()).corrections  # as `luna corrections add` reads them
    return json.loads(path.read_text())


def test_corrections_are_exported_as_the_schema_says(show: Show, tmp_path: Path) -> None:
    reading = small_reading()
    shown = show(reading)
    shown.press("a", "j", "Shift+M", "n", "Enter")
    file = exported(shown, tmp_path, ask="reader-1")
    assert TIME.match(file.pop("exported"))
    made = file.pop("corrections")
    assert file == {
        "format": "luna-corrections", "version": 1, "series_uid": UID, "bundle": "models:/luna/3", "reader": "reader-1",
        "reading": "2026-01-31T12:00:00Z",
    }  # fmt: skip
    assert [(c["kind"], c["finding"], c["label"], c["diameter_mm"]) for c in made] == [
        ("accept", 1, None, 10.0),
        ("relabel", 2, "malignant", 8.0),
        ("add", None, None, 6.0),
    ]
    for correction in made:
        assert set(correction) == {"kind", "time", "finding", "center_xyz", "diameter_mm", "label", "text"}
        assert TIME.match(correction["time"])
    assert made[0]["center_xyz"] == pytest.approx(places(reading)[0], abs=1e-3)
    assert "exported" in shown.page.locator("#work").inner_text()
    assert "not exported" not in shown.page.locator("#work").inner_text()


def test_a_nodule_is_added_by_keys_from_the_list_too(show: Show) -> None:
    shown = show(small_reading())
    shown.page.locator("#rows").focus()
    shown.press("n", "Enter")
    assert "1 correction" in shown.page.locator("#work").inner_text()


def test_what_was_exported_and_undone_counts_as_not_exported(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    shown.press("a", "j", "a")
    exported(shown, tmp_path, ask="r")
    assert shown.page.locator("#sent").inner_text() == "exported"
    shown.press("Control+z")
    assert shown.page.locator("#sent").inner_text() == "not exported"
    shown.press("Control+y")
    assert shown.page.locator("#sent").inner_text() == "exported"
    shown.press("Control+z", "r")
    assert shown.page.locator("#sent").inner_text() == "not exported"


@pytest.mark.parametrize("alias", ["", "Jane Doe", "a" * 33, "é"])
def test_an_alias_is_asked_for_until_it_is_one(show: Show, alias: str) -> None:
    shown = show(small_reading())
    shown.press("a", "Control+s")
    shown.page.locator("#alias-asked").evaluate("(input, value) => { input.value = value; }", alias)
    shown.press("Enter")
    assert shown.page.locator("#alias-asked[aria-invalid=true]").is_visible()
    shown.press("Escape")
    assert not shown.page.locator("#ask-alias").is_visible()


def test_corrections_survive_a_reload_and_come_back_from_their_file(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    shown.press("a", "j", "r", "n", "Enter", "Control+z")
    file = exported(shown, tmp_path, ask="r.2")
    before = shown.luna("corrections")
    shown.goto()
    assert shown.luna("corrections") == before
    assert shown.luna("history") == {"now": 2, "steps": 3}
    shown.press("Control+y")
    assert len(shown.luna("corrections")) == 3

    fresh = show(small_reading())
    assert fresh.luna("corrections") == []
    fresh.page.locator("#import-file").set_input_files(tmp_path / "corrections.json")
    fresh.page.locator("#said", has_text="2 corrections").wait_for()
    assert fresh.luna("corrections") == file["corrections"]
    fresh.press("Control+z")
    assert fresh.luna("corrections") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"series_uid": "1.2.3"}, "another scan"),
        ({"version": 2}, "version"),
        ({"format": "other"}, "no file of corrections"),
        ({"bundle": "models:/luna/9"}, "models:/luna/9"),
        ({"corrections": [{"kind": "guess"}]}, "unknown kind"),
    ],
)
def test_a_foreign_file_is_not_imported(show: Show, tmp_path: Path, change: dict, said: str) -> None:
    shown = show(small_reading())
    shown.press("a")
    file = exported(shown, tmp_path, ask="r2")
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(file | change))
    shown.press("Delete")
    shown.page.locator("#import-file").set_input_files(path)
    notice = shown.page.locator("#notices", has_text="changed.json was not imported")
    notice.wait_for()
    assert said in notice.inner_text()
    assert shown.luna("corrections") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finding": "1"}, "number"),
        ({"finding": True}, "number"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-13-41T12:00:00Z"}, "time"),
        ({"text": "x" * 2001}, "text"),
        ({"text": "\ud800"}, "text"),
        ({"kind": "reject", "label": "benign"}, "no label"),
        ({"kind": "add", "finding": None, "center_xyz": [1e6, 0, 0]}, "outside"),
        ({"diameter_mm": 1e9}, "diameter"),
    ],
)
def test_what_no_page_writes_is_not_imported(show: Show, tmp_path: Path, change: dict, said: str) -> None:
    """What the page takes, it exports again: `luna corrections add` has to read it."""
    shown = show(small_reading())
    shown.press("a")
    file = exported(shown, tmp_path, ask="r2")
    shown.press("Delete")
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(file | {"corrections": [file["corrections"][0] | change]}))
    shown.page.locator("#import-file").set_input_files(path)
    notice = shown.page.locator("#notices", has_text="changed.json was not imported")
    notice.wait_for()
    assert said in notice.inner_text()
    assert shown.luna("corrections") == []


def test_a_huge_file_is_not_imported_and_a_file_twice_adds_once(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    shown.press("n", "Enter")
    file = exported(shown, tmp_path, ask="r")
    shown.page.locator("#import-file").set_input_files(tmp_path / "corrections.json")
    shown.page.wait_for_function("luna.history.now === 2")
    assert len(shown.luna("corrections")) == 1
    path = tmp_path / "huge.json"
    path.write_text(json.dumps(file | {"corrections": file["corrections"] * 5001}))
    shown.page.locator("#import-file").set_input_files(path)
    shown.page.locator("#notices", has_text="more than 5000").wait_for()


@pytest.mark.parametrize("reader", [None, 5, "Jane Doe"])
def test_a_file_without_an_alias_gives_none(show: Show, tmp_path: Path, reader: object) -> None:
    shown = show(small_reading())
    shown.press("a")
    file = exported(shown, tmp_path, ask="r")
    fresh = show(small_reading())
    path = tmp_path / "nobody.json"
    path.write_text(
        json.dumps({name: value for name, value in (file | {"reader": reader}).items() if value is not None})
    )
    fresh.page.locator("#import-file").set_input_files(path)
    fresh.page.locator("#said", has_text="1 correction").wait_for()
    assert fresh.page.locator("#alias").input_value() == ""


@pytest.mark.parametrize(
    "kept",
    [
        "{bad",
        "7",
        '{"steps": [{}], "now": 0}',
        '{"steps": [{"what": "x", "corrections": {"0:1": {"kind": "accept"}}}], "now": 0, "exported": 0}',
        '{"steps": [{"what": "x", "corrections": {"add:1": {"kind": "add", "center_xyz": "no"}}}], "now": 0}',
        '{"steps": [{"what": "start", "corrections": {}}], "now": 5, "exported": 0}',
    ],
)
def test_a_store_that_cannot_be_read_is_said_and_the_page_works(show: Show, kept: str) -> None:
    shown = show(small_reading())
    shown.press("a")
    shown.page.evaluate("(text) => Object.keys(localStorage).forEach((key) => (localStorage[key] = text))", kept)
    shown.goto()
    assert "cannot be read" in shown.page.locator("#notices").inner_text()
    shown.press("j", "r")
    assert [c["kind"] for c in shown.luna("corrections")] == ["reject"]
    shown.goto()
    assert [c["kind"] for c in shown.luna("corrections")] == ["reject"]


def test_a_store_that_is_full_is_said_at_once(show: Show) -> None:
    shown = show(small_reading(), before=FULL_STORAGE)
    shown.press("a")
    assert "keeps nothing" in shown.page.locator("#notices").inner_text()


def test_a_store_with_little_room_keeps_what_is_said_without_its_history(show: Show) -> None:
    small = """const set = Storage.prototype.setItem;
    Storage.prototype.setItem = function (key, text) {
      if (text.length > 1200) throw new DOMException("full", "QuotaExceededError");
      return set.call(this, key, text);
    };"""
    shown = show(small_reading(), before=small)
    shown.press("a", "j", "r", "k", "Shift+B", "j", "a")
    before = shown.luna("corrections")
    shown.goto()
    assert shown.luna("corrections") == before
    assert len(before) == 2


def test_what_is_typed_stays_when_another_tab_says_something(show: Show) -> None:
    shown = show(small_reading())
    other = Shown(page=shown.page.context.new_page(), path=shown.path)
    other.goto()
    shown.page.bring_to_front()
    shown.press("e")
    shown.page.keyboard.type("my n")
    other.page.evaluate("change('accept 2', '0:2', said(rowById.get('0:2'), 'accept'))")
    shown.page.locator("#said", has_text="2 corrections").wait_for()
    shown.page.keyboard.type("ote: r a")  # letters, not commands
    shown.press("Escape")
    said = {c["finding"]: (c["kind"], c["text"]) for c in shown.luna("corrections")}
    assert said == {1: ("note", "my note: r a"), 2: ("accept", "")}


def test_all_taken_back_after_an_export_is_not_exported(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    shown.press("a")
    exported(shown, tmp_path, ask="r")
    shown.press("Delete")
    assert shown.page.locator("#sent").inner_text() == "not exported"


def test_where_nothing_can_be_stored_the_page_says_so(show: Show) -> None:
    shown = show(small_reading(), before=REFUSE_STORAGE)
    assert "keeps nothing" in shown.page.locator("#notices").inner_text()
    shown.press("a")
    assert len(shown.luna("corrections")) == 1


def test_an_older_browser_shows_all_but_the_mask(show: Show) -> None:
    shown = show(small_reading(), before="delete Uint8Array.fromBase64; delete window.DecompressionStream;")
    assert "cannot unpack the U-Net's mask" in shown.page.locator("#notices").inner_text()
    assert shown.luna(f"huAt({list(places(small_reading())[0])})") == pytest.approx(BALL_HU, abs=15)
    shown.press("u", "a")
    assert len(shown.luna("corrections")) == 1


def test_a_browser_that_blurs_what_a_page_reads_back_is_named(show: Show) -> None:
    shown = show(small_reading(), before=BLUR_CANVAS)
    assert "not true" in shown.page.locator("#notices").inner_text()


def test_a_broken_slice_is_said(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    html = shown.path.read_text()
    start = html.index('id="slice-data">') + len('id="slice-data">')
    shown.path.write_text(html[:start] + "AAAA" * 20 + html[start + 80 :])
    shown.page.goto(shown.path.as_uri())
    shown.page.locator("#notices", has_text="cannot be read").wait_for()
    shown.errors.clear()


# ---------------------------------------------------------------- keys and focus
# Where a key is pressed, and which of the page's keys that place has for itself.
FOCI = ("body", "#list", "#limit-0-nodule", "#stack", "#open-help", "#coronal canvas", "#window-1", "#act-accept")


@pytest.mark.parametrize("focus", FOCI)
def test_every_letter_works_wherever_the_focus_is(show: Show, focus: str) -> None:
    shown = show(reading_with_truth())

    def press(*keys: str) -> None:
        for key in keys:
            shown.page.evaluate("(at) => { document.activeElement.blur(); document.querySelector(at).focus(); }", focus)
            shown.press(key)

    for key, window in (("2", 1), ("3", 2), ("1", 0)):
        press(key)
        assert shown.luna("state.window") == window
    for key, layer in (("u", "mask"), ("c", "candidates"), ("b", "kept"), ("m", "malignant"), ("t", "truth")):
        before = shown.luna(f"state.layers.{layer}")
        press(key)
        assert shown.luna(f"state.layers.{layer}") is not before
    for key, switch in (("h", "marks"), ("x", "cross")):
        before = shown.luna(f"state.{switch}")
        press(key)
        assert shown.luna(f"state.{switch}") is not before
    for key, tool in (("n", "add"), ("d", "caliper"), ("v", "move"), ("n", "add"), ("Escape", "move")):
        press(key)
        assert shown.luna("state.tool") == tool
    press("j", "j")
    chosen = shown.luna("state.chosen")
    press("k")
    assert shown.luna("state.chosen") != chosen
    press("w")
    assert shown.luna("state.show") == "all"
    for key, kind in (("a", "accept"), ("r", "reject"), ("Shift+B", "relabel"), ("Shift+M", "relabel")):
        press("j", key)
        assert shown.luna("corrections").pop()["kind"] == kind
    press("Delete", "Control+z", "Control+z", "Control+y")
    assert shown.luna("corrections").pop()["kind"] == "relabel"
    for key, field in (("/", "search"), ("e", "note"), ("l", "list")):
        press(key)
        assert shown.page.evaluate("document.activeElement.id") == field
    press("?")
    assert shown.page.locator("#help").is_visible()
    before = shown.luna("corrections")
    shown.press("a", "r", "Delete", "3", "Control+z")
    assert shown.luna("corrections") == before  # a dialog keeps its keys
    shown.press("Escape")
    press("Control+s")
    assert shown.page.locator("#ask-alias").is_visible()


@pytest.mark.parametrize("field", ["#search", "#note", "#alias", "#limit-0-nodule-number"])
def test_a_field_keeps_what_is_typed_in_it(show: Show, field: str) -> None:
    shown = show(small_reading())
    before = shown.luna("state")
    shown.page.locator(field).focus()
    shown.page.keyboard.type("0.1arnbmjkwxhdvo[]?/-+")
    after = shown.luna("state")
    assert after == before
    assert shown.luna("corrections") == []
    shown.press("Control+s")  # the browser's own would save the page
    assert shown.page.locator("#ask-alias").is_visible()


def test_a_note_that_is_exported_while_it_is_typed_is_in_the_file(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    shown.press("e")
    shown.page.keyboard.type("solid")
    assert [c["text"] for c in exported(shown, tmp_path, ask="r")["corrections"]] == ["solid"]


def test_a_slider_has_its_own_keys_and_a_number_no_step_of_one(show: Show) -> None:
    shown = show(small_reading())
    before = shown.luna("state.scan")
    shown.page.locator("#limit-0-nodule").focus()
    for key, value in (("Home", 0), ("End", 1), ("PageDown", 0.9), ("ArrowLeft", 0.89), ("ArrowUp", 0.9)):
        shown.press(key)
        assert shown.luna("limits[0].nodule") == pytest.approx(value)
    shown.press("o")
    shown.page.locator("#limit-0-nodule-number").focus()
    shown.press("ArrowDown")
    assert shown.luna("limits[0].nodule") == pytest.approx(0.49)
    assert shown.luna("state.scan") == before
    shown.page.locator("#coronal canvas").focus()
    shown.page.locator("#stack").focus()
    shown.press("ArrowUp")
    assert shown.luna("state.scan") == pytest.approx([before[0] + 1, *before[1:]])


def test_a_key_held_down_is_no_toggle(show: Show) -> None:
    shown = show(small_reading())
    for _ in range(4):
        shown.page.keyboard.down("a")
        shown.page.keyboard.down("ArrowUp")
    assert [c["kind"] for c in shown.luna("corrections")] == ["accept"]
    assert shown.luna("state.scan[0]") == 16


def test_digits_with_shift_and_brackets_with_altgr_are_the_same_keys(show: Show) -> None:
    shown = show(small_reading())
    event = "(init) => document.body.dispatchEvent(new KeyboardEvent('keydown', { bubbles: true, ...init }))"
    shown.page.evaluate(event, {"key": "2", "shiftKey": True})  # a French keyboard
    assert shown.luna("state.window") == 1
    shown.press("n", "Enter")
    german = {"key": "]", "ctrlKey": True, "altKey": True, "modifierAltGraph": True}
    shown.page.evaluate(event, german)
    assert shown.luna("corrections[0].diameter_mm") == 7


def test_the_focus_stays_where_it_was_when_the_panel_is_drawn_anew(show: Show) -> None:
    shown = show(small_reading())
    for button in ("act-accept", "act-reject", "act-accept", "undo", "redo"):
        shown.page.locator(f"#{button}").focus()
        shown.press("Space")
        at = shown.page.evaluate("document.activeElement.id")
        assert at == (button if button != "redo" else "list")  # which can do no more
    shown.press("e")
    shown.page.keyboard.type("one two")
    box = shown.page.locator("#note").bounding_box()
    shown.page.mouse.click(box["x"] + 9, box["y"] + 12)  # before what is written
    shown.page.keyboard.type("r ")
    shown.press("Tab")
    assert shown.page.evaluate("document.activeElement.id") != "note"
    (only,) = shown.luna("corrections")
    assert (only["kind"], only["text"]) == ("accept", "r one two")


def test_what_a_field_asks_for_is_its_name(show: Show) -> None:
    shown = show(small_reading())
    shown.press("a", "Control+s")
    assert shown.page.get_by_role("textbox", name="Who reads?").is_visible()


# ---------------------------------------------------------------- compared, and with truth
def test_two_bundles_share_rows_where_they_agree_on_a_place(show: Show, tmp_path: Path) -> None:
    shown = show(compared_reading())
    shown.page.locator("#show-all").click()
    rows = {row["id"]: row["status"].split(" · ")[0] for row in shown.luna("rows")}
    assert rows == {"0:1": "both", "0:2": "both", "1:4": "only B", "0:3": "only B", "0:4": "neither", "0:5": "neither"}
    heads = shown.page.locator("#list-head").inner_text().split()
    assert [word for word in heads if word in ("A", "B")] == ["A", "A", "B", "B"]
    text = shown.page.locator("#counts").inner_text()
    assert "A: 2 of 5 kept" in text
    assert "B: 4 of 4 kept" in text
    assert "models:/luna/7" in shown.page.locator("#thresholds").inner_text()
    assert "phantoms" in shown.page.locator("#notices").inner_text()
    shown.page.locator("#limit-1-nodule-number").fill("0.65")
    shown.press("Enter")
    assert shown.luna("counts[0].kept") == 2
    assert shown.luna("counts[1].kept") == 2
    shown.page.locator('[data-id="1:4"]').click()
    shown.press("a")
    made = exported(shown, tmp_path, ask="r")["corrections"]
    assert [(c["bundle"], c["finding"]) for c in made] == [("models:/luna/7", 4)]


def test_the_graver_of_two_opinions_stands_for_a_row(show: Show) -> None:
    shown = show(compared_reading())
    row = next(row for row in shown.luna("rows") if row["id"] == "0:2")  # A 0.2, B 0.9
    assert (row["kind"], row["status"]) == ("malignant", "both \u00b7 benign by A, malignant by B")


def test_hits_misses_and_false_positives_follow_the_sliders(show: Show) -> None:
    reading = reading_with_truth()
    shown = show(reading)
    counts = shown.luna("counts[0]")
    assert (counts["hits"], counts["misses"], counts["falsePositives"]) == (1, 2, 1)
    missed = {row["id"]: row["status"] for row in shown.luna("rows") if row["kind"] == "missed"}
    assert "filtered out as 3: nodule 0.40 < 0.50" in missed["miss:0:1"]
    assert "never a candidate" in missed["miss:0:2"]
    tags = shown.page.locator("#rows .tag").all_inner_texts()
    assert sorted(tags) == ["FP", "hit"]
    nodule = reading.truth.nodules[1] if reading.truth else None
    assert nodule is not None
    shown.page.locator('[data-id="miss:0:1"]').click()
    shown.press("x")
    corner = px_per_mm(shown, "axial", GRID) * 3 + 4
    red, green, blue = shown.color("axial", nodule.center_xyz, right=corner, down=corner)
    assert min(red, green) > blue + 60  # yellow: missed

    shown.page.locator("#limit-0-nodule-number").fill("0.1")
    shown.press("Enter")
    counts = shown.luna("counts[0]")
    # 3 is a hit now; 4 lies in what is excluded and counts for nothing.
    assert (counts["kept"], counts["hits"], counts["misses"], counts["falsePositives"]) == (4, 2, 1, 1)
    red, green, blue = shown.color("axial", nodule.center_xyz, right=corner, down=corner)
    assert red > green + 40  # purple: found
    assert blue > green + 20


# ---------------------------------------------------------------- odd scans, hostile words, small screens
def test_hostile_words_are_shown_and_never_obeyed(show: Show) -> None:
    reading = small_reading()
    opinion = replace(
        reading.opinions[0], bundle=f"models:/{HOSTILE}/1", asked_as=HOSTILE, recipe=HOSTILE, origin=f"real{HOSTILE}"
    )
    other = replace(opinion, bundle="b&\u2028")
    warnings = (HOSTILE, "<!--<script>")
    shown = show(replace(reading, series_uid=HOSTILE, opinions=(opinion, other), warnings=warnings))
    assert shown.page.locator("img").count() == 0
    assert HOSTILE in shown.page.locator("#facts").inner_text()
    assert shown.page.locator("#notices .notice").all_inner_texts()[:2] == [HOSTILE, "<!--<script>"]
    assert HOSTILE in shown.page.title()
    shown.press("e")
    shown.page.keyboard.type(HOSTILE)
    shown.press("Control+Enter")
    assert shown.page.locator("#note").input_value() == HOSTILE
    assert shown.page.locator("img").count() == 0


def test_a_scan_without_findings(show: Show) -> None:
    reading = small_reading()
    opinion = replace(reading.opinions[0], findings=(), marked=marked_balls(np.zeros(GRID.shape_irc, np.int16)))
    shown = show(replace(reading, opinions=(opinion,), warnings=("no lungs were found",)))
    assert "0 of 0 kept" in shown.page.locator("#counts").inner_text()
    assert "Nothing is kept" in shown.page.locator("#rows").inner_text()
    assert "no lungs were found" in shown.page.locator("#notices").inner_text()
    shown.press("j", "a", "u", "n", "Enter")
    assert [c["kind"] for c in shown.luna("corrections")] == ["add"]


@pytest.mark.parametrize("shape", [(2, 40, 48), (1, 1, 1), (3, 7, 300)])
def test_a_scan_of_few_slices(show: Show, shape: tuple[int, int, int]) -> None:
    grid = Grid(shape_irc=shape, spacing_xyz=(0.7, 0.9, 5.0), origin_xyz=(0.0, 0.0, 0.0))
    hu = np.full(shape, 100, np.int16)
    opinion = opinion_of([finding_at((0.0, 0.0, 0.0), grid)], marked_balls(hu))
    shown = show(Reading(series_uid=UID, hu=hu, grid=grid, opinions=(opinion,), made=MADE))
    shown.press("ArrowUp", "ArrowUp", "PageDown", "2", "u", "+")
    assert shown.luna("state.scan[0]") == 0
    assert shown.luna("huAt([0, 0, 0])") == pytest.approx(100, abs=12)


@pytest.mark.parametrize("width", [390, 420, 800, 1024, 1280, 1920])
def test_no_width_scrolls_sideways(show: Show, width: int) -> None:
    warned = replace(reading_with_truth(), warnings=("a word of a header that is long " * 12,))
    compared = replace(compared_reading(), series_uid="1." + "2345" * 31)
    long_names = replace(
        compared,
        opinions=tuple(
            replace(each, bundle=f"models:/a-registered-model-with-a-very-long-name-of-its-own/{n}")
            for n, each in enumerate(compared.opinions)
        ),
    )
    for reading in (warned, compared, long_names):
        shown = show(reading, width=width, height=1000)
        shown.press("w", "a")
        wide = shown.page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(wide) <= width
        boxes = [shown.page.locator(f"#{name}").bounding_box() for name in ("axial", "coronal", "sagittal", "list")]
        assert min(min(box["width"], box["height"]) for box in boxes) >= 120
        for number in shown.page.locator(".limit input").all():
            box = number.bounding_box()
            assert box["x"] + box["width"] <= width


def test_chosen_and_pressed_are_seen_in_forced_colors(show: Show) -> None:
    shown = show(small_reading(), forced_colors="active")
    ground = "(node) => getComputedStyle(node).backgroundColor"
    for one, other in (("#window-1", "#window-2"), ('[data-id="0:1"]', '[data-id="0:2"]')):
        assert shown.page.locator(one).evaluate(ground) != shown.page.locator(other).evaluate(ground)


def test_a_printed_picture_is_not_stretched(show: Show) -> None:
    shown = show(small_reading())
    shown.page.emulate_media(media="print")
    assert shown.page.locator("#axial canvas").evaluate("(node) => getComputedStyle(node).objectFit") == "contain"
    assert not shown.page.locator("#tools").is_visible()


def test_a_walk_with_keys_alone(show: Show, tmp_path: Path) -> None:
    shown = show(reading_with_truth())
    reached = set()
    for _ in range(60):
        shown.press("Tab")
        reached.add(shown.page.evaluate("document.activeElement.id || document.activeElement.parentNode.id"))
    assert {
        "open-help", "window-2", "layer-mask", "tool-add", "axial", "coronal", "sagittal", "stack", "limit-0-nodule",
        "show-all", "search", "list", "export", "alias",
    } <= reached  # fmt: skip
    outline = shown.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    shown.page.evaluate("document.activeElement.blur()")
    shown.press("?")
    assert shown.page.locator("#help").is_visible()
    shown.press("Escape")
    assert not shown.page.locator("#help").is_visible()
    shown.press("j", "a", "2", "u", "n", "Shift+ArrowRight", "Enter", "d", "Enter")
    shown.press(*["Shift+ArrowRight"] * 5, "Enter", "s")
    file = exported(shown, tmp_path, ask="keys")
    assert [(c["kind"], c["diameter_mm"]) for c in file["corrections"]] == [("accept", 8.0), ("add", 5.0)]


def test_still_where_motion_is_not_wanted(show: Show) -> None:
    shown = show(small_reading(), reduced_motion="reduce")
    assert shown.page.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") in ("0s", "")
