"""docs/api.md is what the code says, and its example does what it shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lungml.files import write_text_atomic
from tests.docs import api
from tests.docs.commands import PROJECT

SOURCE = '''"""What is it?

More.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place.

    More of it.

    Attributes:
        x, y: mm. Not
            voxels.
        name: of it; see e.g. the map.
    """

    x: float
    y: float
    name: str = ""

    @property
    def far(self) -> bool:
        """Whether it is far. Or not."""
        return self.x > 9

    def moved(self, by_mm: float, *, up: bool = False) -> "Point":
        """Another one."""
        return self

    def as_dict(self) -> dict:
        """Its fields."""
        return {}


def find(points: list[Point], *, most: int = 3) -> list[Point]:
    """Find some.

    Args:
        points: where to look.
        most: of them.

    Returns:
        those found.

    Raises:
        ValueError: none is there.
        OSError: and this
            one.
    """
    return points


def silent() -> None:
    pass
'''
SHOWN = """\
### lungml.places

What is it?

```py
Point(x, y, name='')
```
A place.

* `x`, `y`: mm.
* `name`: of it; see e.g. the map.
* `.far`: Whether it is far.
* `.moved(by_mm, *, up)`: Another one.

```py
find(points: list[Point], *, most: int = 3) -> list[Point]
```
Find some.

* `points`: where to look.
* `most`: of them.
* returns: those found.
* raises `ValueError`: none is there.
* raises `OSError`: and this one.
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_text_atomic(tmp_path / "lungml" / "places.py", SOURCE)
    return tmp_path


def test_the_page_is_what_the_code_says() -> None:
    assert api.PAGE.read_text(encoding="utf-8") == api.page_text(), "the code has changed: make docs writes docs/api.md"


def test_the_page_can_be_read() -> None:
    page = api.page_text()
    assert 400 < page.count("\n") < 1000
    assert max(map(len, page.splitlines())) <= 130
    assert "/work" not in page


def test_a_module_is_told_by_what_is_asked_for(project: Path) -> None:
    assert api.module_text(project, "places", ["Point", "find"]) == SHOWN


@pytest.mark.parametrize("name", ["lost", "silent"])
def test_a_name_that_is_not_there_or_says_nothing_is_an_error(project: Path, name: str) -> None:
    with pytest.raises(api.PageError, match=f"lungml.places.{name} is not there"):
        api.module_text(project, "places", [name])


def test_a_module_that_is_not_there_yet_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"places": ("find",), "lost": ("found",)}
    monkeypatch.setattr(api, "SECTIONS", (api.Section(title="Where?", words="", names=names),))
    page = api.page_text(project)
    assert "## Where?" in page
    assert "find(points" in page
    assert "lost" not in page


def test_a_long_call_is_broken_between_its_arguments() -> None:
    call = api.call("f", [f"argument_{n}: int = {n}" for n in range(9)], " -> None")
    assert call.splitlines()[1].startswith("    argument_")
    assert max(map(len, call.splitlines())) <= api.WIDTH
    assert call.replace("\n    ", " ") == f"f({', '.join(f'argument_{n}: int = {n}' for n in range(9))}) -> None"


def test_the_worked_example_runs(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", api.EXAMPLE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == api.PRINTED
    assert (tmp_path / "findings.csv").is_file()
