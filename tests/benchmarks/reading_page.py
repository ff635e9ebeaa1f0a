"""How long does a reading's page take to write and to open, and does it scroll as fast as an eye wants?"""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lungml.candidates import GroupingSettings
from lungml.findings import Finding
from lungml.geometry import Grid, as_triple, irc_to_xyz
from lungml.marked import Marked
from lungml.reading.page import page_html
from lungml.reading.record import Opinion, Reading
from tests import browser
from tests.benchmarks.measure import Row, Settings, compare, skipped
from tests.benchmarks.scenes import SERIES_UID, long_scan, specks

SLICES, CANDIDATES, KEPT = 133, 800, 12  # as the real scans have
OPEN_S, FRAME_S, MOST_MB = 2.0, 1 / 30, 15.0  # what a page promises
SCROLLING_S = 3
# Every frame a wheel's notch or a key, and how far apart the frames are, ms.
SCROLL = """async (seconds) => {
  const canvas = document.querySelector("#axial canvas");
  const stamps = [];
  await new Promise((done) => {
    const tick = (now) => {
      stamps.push(now);
      const down = Math.floor(stamps.length / 40) % 2 ? 1 : -1;
      const key = down > 0 ? "ArrowDown" : "ArrowUp";
      if (stamps.length % 2) canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 100 * down, cancelable: true }));
      else document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      if (now - stamps[0] < 1000 * seconds) requestAnimationFrame(tick);
      else done();
    };
    requestAnimationFrame(tick);
  });
  return (stamps.at(-1) - stamps[0]) / (stamps.length - 1);
}"""


def page(settings: Settings) -> list[Row]:
    """A page of 512 x 512 x 133 with 800 candidates: written, opened in Chromium without a window, scrolled."""
    reading = _reading()
    path = settings.folder / "index.html"
    path.write_text(page_html(reading))
    megabytes = path.stat().st_size / 1e6
    written = compare(
        f"write a page of 512x512x{SLICES}",
        "slices as 16-bit PNG",
        lambda: path.write_text(page_html(reading)),
        lambda: _png_texts(reading.hu),
        disagree=lambda *_: "" if megabytes < MOST_MB else f"the page is {megabytes:.1f} MB",
        repeats=settings.repeats,
        note=f"{megabytes:.1f} MB, lossy; the peer's is lossless",
    )
    return [written, *_in_browser(path, settings.repeats)]


def _reading() -> Reading:
    hu, grid, _ = long_scan()
    grid = Grid(
        shape_irc=(SLICES, *grid.shape_irc[1:]),
        spacing_xyz=grid.spacing_xyz,
        origin_xyz=grid.origin_xyz,
        direction=grid.direction,
    )
    rng = np.random.default_rng(4)
    findings = tuple(
        _finding(rng.uniform((0, 0, 0), np.subtract(grid.shape_irc, 1)), grid, 0.9 if number < KEPT else 0.1)
        for number in range(CANDIDATES)
    )
    opinion = Opinion(
        bundle="models:/luna/1",
        asked_as="models:/luna/1",
        recipe="best",
        origin="phantom",
        nodule_threshold=0.5,
        malignant_threshold=0.5,
        grouping=GroupingSettings(),
        findings=findings,
        marked=Marked.of_mask(specks(grid.shape_irc, CANDIDATES)),
    )
    return Reading(
        series_uid=SERIES_UID, hu=hu[:SLICES], grid=grid, opinions=(opinion,), made=datetime(2026, 1, 1, tzinfo=UTC)
    )


def _finding(center_irc: npt.NDArray[np.float64], grid: Grid, prob_nodule: float) -> Finding:
    return Finding(
        center_irc=as_triple(center_irc),
        center_xyz=as_triple(irc_to_xyz(center_irc, grid)),
        diameter_mm=6.0,
        prob_nodule=prob_nodule,
        prob_malignant=0.2 if prob_nodule >= 0.5 else math.nan,
        stage="benign" if prob_nodule >= 0.5 else "filtered",
    )


def _png_texts(hu: npt.NDArray[np.int16]) -> list[str]:
    texts = []
    for plane in (hu.astype(np.int32) + 2**15).astype(np.uint16):
        stream = io.BytesIO()
        Image.fromarray(plane).save(stream, "PNG", compress_level=1)
        texts.append(base64.b64encode(stream.getvalue()).decode("ascii"))
    return texts


def _in_browser(path: Path, repeats: int) -> list[Row]:
    stages = (("open it: the first picture", "2 s", OPEN_S), ("scroll it: a frame", "30 a second", FRAME_S))
    if browser.missing():
        return [skipped(stage, peer, "needs Chromium and playwright") for stage, peer, _ in stages]
    with browser.chromium() as chromium:
        seen = [_open_and_scroll(chromium.new_page, path) for _ in range(repeats)]
    all_s = median(one["all"] for one in seen)
    notes = (
        f"from the click to the picture; all {SLICES} slices after {all_s:.1f} s",
        "every candidate and the mask shown",
    )
    return [
        _promise(stage, peer, [one[name] for one in seen], promised, note)
        for (stage, peer, promised), name, note in zip(stages, ("first", "frame"), notes)
    ]


def _promise(stage: str, peer: str, ours_s: list[float], promised_s: float, note: str) -> Row:
    """A row whose peer is a number that was promised."""
    ratios = [promised_s / each for each in ours_s]
    return Row(
        stage=stage,
        peer=peer,
        ours_s=median(ours_s),
        peer_s=promised_s,
        ratio=median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        note=note,
    )


def _open_and_scroll(new_page: Callable[..., Any], path: Path) -> dict[str, float]:
    opened = new_page(viewport={"width": 1280, "height": 800})
    opened.goto(path.as_uri())
    opened.wait_for_selector("body[data-ready]")
    times = opened.evaluate("luna.times")
    for key in ("u", "c"):
        opened.keyboard.press(key)
    time.sleep(0.2)
    frame_ms = opened.evaluate(SCROLL, SCROLLING_S)
    opened.close()
    return {"first": times["firstPicture"] / 1000, "all": times["allSlices"] / 1000, "frame": frame_ms / 1000}
