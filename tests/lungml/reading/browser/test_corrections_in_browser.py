from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lungml.geometry import Grid, as_triple, irc_to_xyz
from lungml.reading.pixels import upright
from lungml.reading.record import Reading
from tests.lungml.reading.browser.shown import (
    Show,
    Shown,
    box_corner,
    exported,
    kept,
    places,
    tilted,
)
from tests.lungml.reading.page_readings import (
    BALL_HU,
    GRID,
    MADE,
    UID,
    chest,
    finding_at,
    marked_balls,
    opinion_of,
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
WATCH_STORAGE = """let frames = 0;
const count = () => { frames += 1; requestAnimationFrame(count); };
requestAnimationFrame(count);
const store = window.localStorage;
window.askedAtFrame = [];
Object.defineProperty(window, "localStorage", { get() { window.askedAtFrame.push(frames); return store; } });"""
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")


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


def test_thresholds_are_undone_a_drag_or_a_run_of_keys_at_a_time(show: Show) -> None:
    shown = show(small_reading())
    box = shown.page.locator("#limit-0-nodule").bounding_box()
    middle = box["x"] + box["width"] / 2
    shown.page.mouse.move(middle, box["y"] + box["height"] / 2)
    shown.page.mouse.down()
    shown.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2, steps=8)
    shown.page.mouse.up()
    dragged = shown.luna("limits[0].nodule")
    assert dragged < 0.3
    assert shown.luna("history") == {"now": 1, "steps": 1}
    assert f"last: Nodule \u2265 {dragged}" in shown.page.locator("#history").inner_text()
    assert "moved by you" in shown.page.locator("#thresholds").inner_text()
    shown.press("ArrowLeft", "ArrowLeft", "ArrowRight", "PageUp")
    assert shown.luna("history") == {"now": 2, "steps": 2}
    shown.press("Control+z")
    assert shown.luna("limits[0].nodule") == dragged
    shown.press("Control+z")
    assert shown.luna("limits[0].nodule") == 0.5
    assert kept(shown) == 2
    assert "moved" not in shown.page.locator("#thresholds").inner_text()
    shown.press("Control+y")
    assert shown.luna("limits[0].nodule") == dragged
    assert shown.page.locator("#limit-0-nodule-number").input_value() == str(dragged)
    shown.press("q", "Control+z")
    assert shown.luna("limits[0].nodule") == dragged
    shown.goto()
    assert shown.luna("limits[0].nodule") == dragged
    assert kept(shown) > 2
    shown.page.locator("#undo").click()
    assert shown.luna("limits[0].nodule") == 0.5


def test_a_threshold_that_comes_back_to_where_it_was_is_no_step(show: Show) -> None:
    shown = show(small_reading())
    shown.page.locator("#limit-0-nodule").focus()
    shown.press("ArrowLeft", "ArrowRight", "Tab")
    assert shown.luna("history") == {"now": 0, "steps": 0}
    assert shown.page.locator("#undo").is_disabled()
    shown.press("q")
    assert shown.luna("history") == {"now": 0, "steps": 0}


def test_steps_back_go_through_thresholds_and_corrections_in_their_order(show: Show) -> None:
    shown = show(small_reading())
    shown.press("a")
    shown.page.locator("#limit-0-nodule-number").fill("0.3")
    shown.press("Tab", "Control+z")  # from a number in which nothing was typed
    assert (shown.luna("limits[0].nodule"), len(shown.luna("corrections"))) == (0.5, 1)
    shown.press("Control+z")
    assert shown.luna("corrections") == []
    shown.press("Control+y", "Control+y")
    assert (shown.luna("limits[0].nodule"), len(shown.luna("corrections"))) == (0.3, 1)


def test_what_is_undone_is_looked_at(show: Show) -> None:
    shown = show(small_reading())
    shown.press("j", "r", "k")
    assert shown.luna("state.chosen") == "0:1"
    shown.press("Control+z")
    assert shown.luna("state.chosen") == "0:2"
    assert shown.luna("state.scan[0]") == 6
    assert shown.page.locator("#redo").get_attribute("title") == "Redo: reject 2"


def test_ways_of_looking_and_the_alias_are_no_steps(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    shown.press("a", "u", "2", "+", "w", "x")
    shown.page.locator("#alias").fill("ann")
    shown.press("Enter", "Control+z")
    assert shown.luna("corrections") == []
    assert shown.luna("state.layers.mask")
    assert shown.luna("state.window") == 1
    assert shown.page.locator("#alias").input_value() == "ann"
    shown.press("Control+y")
    exported(shown, tmp_path)
    shown.page.locator("#limit-0-nodule-number").fill("0.3")
    shown.press("Enter")
    assert shown.page.locator("#sent").inner_text() == "exported"  # thresholds are in no file
    shown.page.locator("#alias").fill("bob")
    shown.press("Enter")
    assert shown.page.locator("#sent").inner_text() == "not exported"  # under this name


def test_a_click_ends_a_threshold_and_presses_what_was_clicked(show: Show) -> None:
    shown = show(small_reading())
    for button, said in (("#act-reject", "reject"), ("#act-accept", "accept")):
        shown.page.locator("#limit-0-nodule-number").fill("0.3" if said == "reject" else "0.4")
        shown.page.mouse.move(*(sum(pair) for pair in zip((9, 9), box_corner(shown, button))))
        shown.page.mouse.down()
        assert "3 of 5 kept" in shown.page.locator("#counts", has_text="3 of 5").inner_text()
        shown.page.mouse.up()
        assert [c["kind"] for c in shown.luna("corrections")] == [said]
    shown.page.locator("#limit-0-nodule-number").fill("0.1")
    shown.page.mouse.move(*(sum(pair) for pair in zip((9, 9), box_corner(shown, "#undo"))))
    shown.page.mouse.down()
    assert shown.luna("limits[0].nodule", frames=2) == 0.1
    shown.page.mouse.up()
    assert shown.luna("limits[0].nodule") == 0.4


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
@pytest.mark.parametrize("direction", [0, 1], ids=["mirrored", "tilted"])
def test_known_distances_are_measured_on_any_grid(
    show: Show, direction: int, spacing: tuple[float, float, float]
) -> None:
    axes = (tilted(0, (-1, 1, -1)), tilted(20, (-1, -1, 1)))[direction]
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


# What a file says, or its one correction, that this page does not take: what it takes it exports again, and
# `luna corrections add` has to read that.
FOREIGN = [
    ({"series_uid": "1.2.3"}, "another scan"),
    ({"version": 2}, "version"),
    ({"format": "other"}, "no file of corrections"),
    ({"bundle": "models:/luna/9"}, "models:/luna/9"),
    ({"corrections": [{"kind": "guess"}]}, "unknown kind"),
]
WRONG = [
    ({"finding": "1"}, "number"),
    ({"finding": True}, "number"),
    ({"time": "yesterday"}, "time"),
    ({"time": "2026-13-41T12:00:00Z"}, "time"),
    ({"text": "x" * 2001}, "text"),
    ({"text": "\ud800"}, "text"),
    ({"kind": "reject", "label": "benign"}, "no label"),
    ({"kind": "add", "finding": None, "center_xyz": [1e6, 0, 0]}, "outside"),
    ({"diameter_mm": 1e9}, "diameter"),
]


def test_what_no_page_writes_of_this_reading_is_not_imported(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    shown.press("a")
    file = exported(shown, tmp_path, ask="r2")
    shown.press("Delete")
    (correction,) = file["corrections"]
    files = [(file | change, said) for change, said in FOREIGN]
    files += [(file | {"corrections": [correction | change]}, said) for change, said in WRONG]
    for number, (changed, said) in enumerate(files):
        path = tmp_path / f"changed-{number}.json"
        path.write_text(json.dumps(changed))
        shown.page.locator("#import-file").set_input_files(path)
        notice = shown.page.locator("#notices", has_text=f"changed-{number}.json was not imported")
        notice.wait_for()
        assert said in notice.inner_text()
        assert shown.luna("corrections", frames=0) == []


def test_a_huge_file_is_not_imported_and_a_file_twice_adds_once(show: Show, tmp_path: Path) -> None:
    shown = show(small_reading())
    shown.press("n", "Enter")
    file = exported(shown, tmp_path, ask="r")
    shown.page.locator("#import-file").set_input_files(tmp_path / "corrections.json")
    shown.page.locator("#live", has_text="1 corrections imported").wait_for(state="attached")
    assert shown.luna("history.now") == 2
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
    shown.page.evaluate("(text) => [STORE_KEY, ALIAS_KEY].forEach((key) => localStorage.setItem(key, text))", kept)
    shown.goto()
    assert "cannot be read" in shown.page.locator("#notices").inner_text()
    shown.press("j", "r")
    assert [c["kind"] for c in shown.luna("corrections")] == ["reject"]
    shown.goto()
    assert [c["kind"] for c in shown.luna("corrections")] == ["reject"]


def test_the_store_is_not_asked_for_before_the_browser_knows_the_page(show: Show) -> None:
    """Chromium gives a page that is too early an empty store that is forgotten with it; seen on a busy machine."""
    shown = show(small_reading(), before=WATCH_STORAGE)
    assert shown.page.evaluate("askedAtFrame[0]") >= 2


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
    shown = show(small_reading(), alone=True)
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
