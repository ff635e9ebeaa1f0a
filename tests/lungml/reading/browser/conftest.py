from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lungml.reading.page import write_page
from lungml.reading.record import Reading
from tests import browser

READ_PIXEL = """([plane, x, y]) => {
  const context = document.querySelector(`#${plane} canvas`).getContext("2d");
  return [...context.getImageData(x, y, 1, 1).data].slice(0, 3);
}"""
Point = tuple[float, float, float]


@dataclass
class Shown:
    """A page in the browser, with what went wrong and what it asked for."""

    page: Any
    path: Path
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def luna(self, what: str) -> Any:
        """A value of the page's state; whatever is drawn in the next frame is drawn first."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.page.evaluate(f"luna.{what}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def screen(self, plane: str, point_xyz: Point) -> tuple[float, float]:
        """Where a point lies on the screen, pixels."""
        x, y = self.luna(f"screenOf('{plane}', {list(point_xyz)})")
        box = self.page.locator(f"#{plane} canvas").bounding_box()
        return box["x"] + x, box["y"] + y

    def color(self, plane: str, point_xyz: Point, right: float = 0, down: float = 0) -> list[int]:
        """Red, green and blue of the canvas at a point, or so many pixels beside it."""
        x, y = self.luna(f"screenOf('{plane}', {list(point_xyz)})")
        return self.page.evaluate(READ_PIXEL, [plane, round(x + right), round(y + down)])

    def refuse_dialog(self, dialog: Any) -> None:
        self.errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def goto(self) -> None:
        self.page.goto(self.path.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for a module's tests, or a skip that says what is missing."""
    if what := browser.missing():
        pytest.skip(what)
    with browser.chromium() as opened:
        yield opened


Show = Callable[..., Shown]


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Show]:
    """Write a reading's page and open it; no test passes whose page had an error or asked for anything."""
    shown = []

    def open_page(reading: Reading, *, width: int = 1280, height: int = 800, before: str = "", **context: Any) -> Shown:
        path = tmp_path / f"page-{len(shown)}.html"
        write_page(path, reading)
        opened = chromium.new_context(viewport={"width": width, "height": height}, **context)
        each = Shown(page=opened.new_page(), path=path)
        each.page.on("pageerror", lambda error: each.errors.append(str(error)))
        each.page.on("console", lambda line: each.errors.append(line.text) if line.type == "error" else None)
        each.page.on("request", lambda request: each.requests.append(request.url))
        each.page.on("dialog", each.refuse_dialog)
        if before:
            each.page.add_init_script(before)
        each.goto()
        shown.append(each)
        return each

    yield open_page
    for each in shown:
        each.page.context.close()
        assert each.errors == []
        assert {url for url in each.requests if not url.startswith("blob:")} == {each.path.as_uri()}
