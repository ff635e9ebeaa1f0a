from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lungml.geometry import Grid, as_triple, irc_to_xyz
from lungml.reading.record import Reading
from tests.lungml.reading.browser.shown import (
    Show,
    blue_ring,
    exported,
    places,
    px_per_mm,
    tilted,
)
from tests.lungml.reading.page_readings import (
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
BOXES = "(which) => [...document.querySelectorAll(which)].map((node) => node.getBoundingClientRect().toJSON())"
HOSTILE = "</script><img src=x onerror=alert(1)>"


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


@pytest.mark.parametrize(
    "direction",
    [tilted(0), tilted(0, (-1, 1, -1)), tilted(15, (1, -1, 1)), tilted(20, (-1, -1, -1))],
    ids=["plain", "mirrored", "tilted and prone", "tilted and turned round"],
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


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_left_and_right_front_and_back_head_and_feet_are_where_radiologists_look_for_them(
    show: Show, flip: tuple[int, int, int]
) -> None:
    grid = replace(GRID, shape_irc=(20, 20, 20), spacing_xyz=(1.0, 1.0, 1.0), direction=tilted(0, flip))
    middle = np.array(as_triple(irc_to_xyz((9.5, 9.5, 9.5), grid)))
    hu = chest(grid, [(middle, 4.0)])
    shown = show(Reading(series_uid=UID, hu=hu, grid=grid, opinions=(opinion_of([], marked_balls(hu)),), made=MADE))

    def step(plane: str, xyz: tuple[float, float, float]) -> list[float]:
        there, here = (shown.luna(f"screenOf('{plane}', {point.tolist()})") for point in (middle + xyz, middle))
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


def long_words(name: str) -> Reading:
    """Readings with words that are wider than most."""
    if name == "warned":
        return replace(reading_with_truth(), warnings=("a word of a header that is long " * 12,))
    compared = replace(compared_reading(), series_uid="1." + "2345" * 31)
    if name == "compared":
        return compared
    opinions = tuple(
        replace(each, bundle=f"models:/a-registered-model-with-a-very-long-name-of-its-own/{n}")
        for n, each in enumerate(compared.opinions)
    )
    return replace(compared, opinions=opinions)


@pytest.mark.parametrize("name", ["warned", "compared", "long names"])
def test_no_width_scrolls_sideways(show: Show, name: str) -> None:
    shown = show(long_words(name), width=390, height=1000)
    shown.press("w", "a")
    for width in (390, 420, 800, 1024, 1280, 1920):
        shown.page.set_viewport_size({"width": width, "height": 1000})
        wide = shown.page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(wide) <= width
        boxes = shown.page.evaluate(BOXES, "#axial, #coronal, #sagittal, #list")
        assert min(min(box["width"], box["height"]) for box in boxes) >= 120
        assert max(box["right"] for box in shown.page.evaluate(BOXES, ".limit input, #work *")) <= width


def test_chosen_and_pressed_are_seen_in_forced_colors(show: Show) -> None:
    shown = show(small_reading(), forced_colors="active")
    ground = "(node) => getComputedStyle(node).backgroundColor"
    for one, other in (("#window-1", "#window-2"), ('[data-id="0:1"]', '[data-id="0:2"]')):
        assert shown.page.locator(one).evaluate(ground) != shown.page.locator(other).evaluate(ground)


def test_a_printed_picture_is_not_stretched(show: Show) -> None:
    shown = show(small_reading(), alone=True)
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
