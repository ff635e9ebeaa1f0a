from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lungml.geometry import Grid, as_triple, irc_to_xyz
from lungml.reading.correction_schema import parse_corrections
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


@pytest.mark.parametrize("width", [420, 800, 1024, 1280, 1920])
def test_no_width_scrolls_sideways(show: Show, width: int) -> None:
    warned = replace(reading_with_truth(), warnings=("a word of a header that is long " * 12,))
    for reading in (warned, replace(compared_reading(), series_uid="1." + "2345" * 15)):
        shown = show(reading, width=width, height=1000)
        shown.press("w", "a")
        wide = shown.page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(wide) <= width
        boxes = [shown.page.locator(f"#{name}").bounding_box() for name in ("axial", "coronal", "sagittal", "list")]
        assert min(min(box["width"], box["height"]) for box in boxes) >= 120


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
