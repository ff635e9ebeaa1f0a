"""`luna data sweep`: what it lists, what it removes, and that it fits a terminal."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from flows.show_sweep import size_in_words, sweep_table
from lungml.home import Home
from tasks.in_use import using
from tasks.unneeded import Kind, Survey, Unneeded
from tests.flows.environments import environment_of

Luna = Callable[..., tuple[int, str, str]]
KEY = "0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An old and a new unfinished training."""
    home = Home(tmp_path / "artifacts")
    for number, (stage, days) in enumerate((("segmentation", 20), ("malignancy", 3)), start=1):
        state = home.checkpoints / stage / KEY / "last.pt"
        state.parent.mkdir(parents=True)
        state.write_bytes(b"x" * 1_500_000 * number)
        for path in (state, state.parent):
            os.utime(path, (time.time() - days * 86_400,) * 2)
    return home


@pytest.fixture
def environment(home: Home) -> Iterator[None]:
    with environment_of(home, columns=80):
        yield


def test_it_lists_first_and_removes_when_told_to(luna: Luna, home: Home) -> None:
    old, new = (home.checkpoints / stage / KEY for stage in ("segmentation", "malignancy"))
    status, said, notes = luna("data", "sweep")
    assert (status, notes) == (0, "note: no bundle is registered here: all answers and findings are kept\n")
    lines = [line.rstrip() for line in said.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    day = time.strftime("%Y-%m-%d", time.localtime(time.time() - 20 * 86_400))
    assert [line.split() for line in lines] == [
        ["nothing", "needs", "any", "more", "parts", "last", "used", "size"],
        ["checkpoints/", "1", "1.5", "MB"],
        [f"segmentation/{KEY}", "1", day, "1.5", "MB"],
        ["all", "of", "it", "1", "1.5", "MB"],
        ["nothing", "was", "removed;", "luna", "data", "sweep", "--yes", "does", "it"],
    ]
    assert old.exists()
    with using(home):
        status, said, error = luna("data", "sweep", "--yes")
    assert (status, said) == (1, "")
    assert error == f"error: {home.root}: a run works on it; sweep when it has ended; nothing was removed\n"
    assert old.exists()
    status, said, _ = luna("data", "sweep", "--yes")
    assert (status, said.splitlines()[-1]) == (0, "1.5 MB removed; a run makes again what it wants of it")
    assert [old.exists(), new.exists()] == [False, True]
    assert luna("data", "sweep", "--yes")[1] == "everything here is needed\n"
    assert luna("data", "sweep", "--days", "2")[1].splitlines()[-2].split()[-2:] == ["3.0", "MB"]
    assert luna("data", "sweep", "--days", "0")[0] == 2


def entry(kind: Kind, folder: str, *sizes: int) -> Unneeded:
    paths = tuple(Path(str(number)) for number, _ in enumerate(sizes))
    return Unneeded(kind=kind, folder=Path(folder), paths=paths, sizes=sizes, parts=len(sizes), last=1.75e9)


def test_sums_stand_over_each_kind_and_at_the_end_and_all_fits_80_columns() -> None:
    entries = (
        entry("crops", "crops/a.zarr", 10**9, 2 * 10**9),
        entry("crops", "crops/best-0a1b2c3d-mined-0a1b2c3d.zarr", *[49 * 10**6] * 888),
        entry("trainings", f"checkpoints/classification/{KEY}", 5),
        entry("half-written", ".", 900),
        entry("half-written", f"checkpoints/classification/{KEY}", 95),
    )
    console = Console(width=80, highlight=False, markup=False, record=True, file=io.StringIO())
    console.print(sweep_table(Survey(entries=entries)))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert all(len(line) <= 80 for line in lines)
    cells = [line.split() for line in lines]
    day = time.strftime("%Y-%m-%d", time.localtime(1.75e9))
    assert cells[1:] == [
        ["crops/", "890", "46.5", "GB"],
        ["best-0a1b2c3d-mined-0a1b2c3d.zarr", "888", day, "43.5", "GB"],  # the largest stands first
        ["a.zarr", "2", day, "3.0", "GB"],
        ["checkpoints/", "1", "5", "B"],
        [f"classification/{KEY}", "1", day, "5", "B"],
        ["half-written", "2", "1.0", "kB"],
        [".", "1", day, "900", "B"],
        ["checkpoints/classification/0123456789abcdef012", "1", day, "95", "B"],
        ["34567"],  # folded, not cut
        ["all", "of", "it", "893", "46.5", "GB"],
    ]


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [(0, "0 B"), (949, "949 B"), (951, "1.0 kB"), (1_540_000, "1.5 MB"), (999_999_999, "1.0 GB")],
)
def test_a_size_has_the_unit_that_fits(size_bytes: int, words: str) -> None:
    assert size_in_words(size_bytes) == words
