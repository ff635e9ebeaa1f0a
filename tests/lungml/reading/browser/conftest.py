from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lungml.reading.page import write_page
from lungml.reading.record import Reading
from tests import browser
from tests.lungml.reading.browser.shown import Show, Shown

# Nothing of a test is stored for the next; what the page itself stores when it is left is of no use either.
FORGET = "localStorage.clear(); addEventListener('pagehide', () => localStorage.clear());"
SIZE = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for a module's tests, or a skip that says what is missing."""
    if what := browser.missing():
        pytest.skip(what)
    with browser.chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def first_page(chromium: Any) -> Any:
    """A page that a module's tests open one after the other: a new one takes longer than most of them."""
    return chromium.new_context(viewport=SIZE).new_page()


@pytest.fixture
def show(chromium: Any, first_page: Any, tmp_path: Path) -> Iterator[Show]:
    """Write a reading's page and open it; no test passes whose page had an error or asked for anything.

    A second page of a test, one that is `alone`, and one of an odd browser knows nothing of what others stored.
    """
    shown: list[Shown] = []
    heard: list[tuple[str, Callable[[Any], None]]] = []

    def open_page(
        reading: Reading,
        *,
        width: int = SIZE["width"],
        height: int = SIZE["height"],
        before: str = "",
        alone: bool = False,
        **context: Any,
    ) -> Shown:
        path = tmp_path / f"page-{len(shown)}.html"
        write_page(path, reading)
        size = {"width": width, "height": height}
        own = bool(shown or alone or before or context)
        page = chromium.new_context(viewport=size, **context).new_page() if own else first_page
        if page.viewport_size != size:
            page.set_viewport_size(size)
        each = Shown(page=page, path=path)
        hung = each.listen()
        if not own:
            heard.extend(hung)
            page.mouse.move(0, 0)
        if before:
            page.add_init_script(before)
        shown.append(each)
        each.goto()
        return each

    yield open_page
    for event, does in heard:
        first_page.remove_listener(event, does)
    for each in shown:
        if each.page is first_page:
            first_page.evaluate(FORGET)
        else:
            each.page.context.close()
        assert each.errors == []
        assert {url for url in each.requests if not url.startswith("blob:")} == {each.path.as_uri()}
