"""A page in a browser, and what tests ask of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lungml.geometry import Grid, as_triple
from lungml.reading.correction_schema import parse_corrections
from lungml.reading.record import Reading

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

    def luna(self, what: str, frames: int = 1) -> Any:
        """A value of the page's state; whatever waits for the next frame, or so many frames, is done first."""
        wait = "done()"
        for _ in range(frames):
            wait = f"requestAnimationFrame(() => {wait})"
        return self.page.evaluate(f"new Promise((done) => {wait}).then(() => luna.{what})")

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
        x, y = self.luna(f"screenOf('{plane}', {list(point_xyz)})", frames=2)  # a threshold's: counted, then drawn
        return self.page.evaluate(READ_PIXEL, [plane, round(x + right), round(y + down)])

    def refuse_dialog(self, dialog: Any) -> None:
        self.errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def listen(self) -> list[tuple[str, Callable[[Any], None]]]:
        """Note what goes wrong and what is asked for from now on; what was hung on the browser's page."""

        def note(line: Any) -> None:
            if line.type == "error":
                self.errors.append(line.text)

        heard: list[tuple[str, Callable[[Any], None]]] = [
            ("pageerror", lambda error: self.errors.append(str(error))),
            ("console", note),
            ("request", lambda request: self.requests.append(request.url)),
            ("dialog", self.refuse_dialog),
        ]
        for event, does in heard:
            self.page.on(event, does)
        return heard

    def goto(self) -> None:
        self.page.goto(self.path.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)


Show = Callable[..., Shown]


def places(reading: Reading, opinion: int = 0) -> list[tuple[float, float, float]]:
    return [finding.center_xyz for finding in reading.opinions[opinion].findings]


def kept(shown: Shown) -> int:
    return shown.luna("counts[0].kept")


def tilted(degrees: float, flip: tuple[int, int, int] = (1, 1, 1)) -> tuple[tuple[float, ...], ...]:
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    matrix = about_x @ about_z * np.array(flip)
    return tuple(as_triple(row) for row in matrix)


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


def box_corner(shown: Shown, selector: str) -> tuple[float, float]:
    box = shown.page.locator(selector).bounding_box()
    return box["x"], box["y"]


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
