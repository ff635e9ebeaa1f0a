from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lungml.reading.browser.shown import (
    Show,
    exported,
)
from tests.lungml.reading.page_readings import (
    reading_with_truth,
    small_reading,
)

pytestmark = pytest.mark.slow


# Where a key is pressed, and which of the page's keys that place has for itself.
FOCI = ("body", "#list", "#limit-0-nodule", "#stack", "#open-help", "#coronal canvas", "#window-1", "#act-accept")


@pytest.mark.parametrize("focus", FOCI)
def test_every_letter_works_wherever_the_focus_is(show: Show, focus: str) -> None:
    shown = show(reading_with_truth())

    def press(*keys: str) -> None:
        for key in keys:
            shown.page.evaluate("(at) => { document.activeElement.blur(); document.querySelector(at).focus(); }", focus)
            shown.press(key)

    def now(what: str) -> Any:
        return shown.luna(what, frames=0)

    for key, window in (("2", 1), ("3", 2), ("1", 0)):
        press(key)
        assert now("state.window") == window
    for key, layer in (("u", "mask"), ("c", "candidates"), ("b", "kept"), ("m", "malignant"), ("t", "truth")):
        before = now(f"state.layers.{layer}")
        press(key)
        assert now(f"state.layers.{layer}") is not before
    for key, switch in (("h", "marks"), ("x", "cross")):
        before = now(f"state.{switch}")
        press(key)
        assert now(f"state.{switch}") is not before
    for key, tool in (("n", "add"), ("d", "caliper"), ("v", "move"), ("n", "add"), ("Escape", "move")):
        press(key)
        assert now("state.tool") == tool
    press("j", "j")
    chosen = now("state.chosen")
    press("k")
    assert now("state.chosen") != chosen
    press("w")
    assert now("state.show") == "all"
    for key, kind in (("a", "accept"), ("r", "reject"), ("Shift+B", "relabel"), ("Shift+M", "relabel")):
        press("j", key)
        assert now("corrections").pop()["kind"] == kind
    press("Delete", "Control+z", "Control+z", "Control+y")
    assert now("corrections").pop()["kind"] == "relabel"
    for key, field in (("/", "search"), ("e", "note"), ("l", "list")):
        press(key)
        assert shown.page.evaluate("document.activeElement.id") == field
    press("?")
    assert shown.page.locator("#help").is_visible()
    before = now("corrections")
    shown.press("a", "r", "Delete", "3", "Control+z")
    assert now("corrections") == before  # a dialog keeps its keys
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


@pytest.mark.parametrize("key", ["Escape", "Enter"])
def test_the_find_field_says_what_the_list_is_searched_for_when_it_is_left(show: Show, key: str) -> None:
    shown = show(small_reading())
    shown.press("/")
    shown.page.keyboard.type("zzz")
    shown.press(key)
    assert shown.page.evaluate("document.activeElement.id") == "list"
    assert shown.page.locator("#search").input_value() == "zzz"
    assert shown.luna("rows") == []


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
    shown.press("q")
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
    for key in ("a", "ArrowUp"):
        shown.page.keyboard.up(key)


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
