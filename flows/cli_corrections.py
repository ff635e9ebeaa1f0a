"""The `luna corrections` commands: keep what readers corrected, take it back, see what becomes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.terminal import err, out, print_note, start

if TYPE_CHECKING:
    from tasks.corrections import Added, Listed

app = typer.Typer(no_args_is_help=True, help="Keep what readers corrected, for the next training.")

READER_HELP = "the reader's alias, in place of that in the files: letters, digits, dots, dashes, underscores"
SHORT = 10  # characters of a series uid that tell it apart in a table


@app.command()
def add(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="corrections.json, as the page of luna read exports it")
    ],
    reader: Annotated[str | None, typer.Option(metavar="ALIAS", help=READER_HELP)] = None,
) -> None:
    """Check corrections and keep each file as a version; the next training uses those of training scans.

    A file that cannot be taken costs only itself; the status is 1 if there was one.
    """
    home = start(flows=False)
    from tasks.corrections import add_files

    refused = 0
    for one in add_files(home, files, reader):
        if one.problem:
            refused += 1
            err.print(f"[red]refused:[/] {escape(f'{one.path}: {one.problem}')}", soft_wrap=True)
            continue
        if one.note:
            print_note(f"{one.path}: {one.note}")
        out.print(_added(one), soft_wrap=True)
    raise typer.Exit(1 if refused else 0)


@app.command()
def undo(
    what: Annotated[str, typer.Argument(metavar="VERSION[.N]", help="a version, or one correction of it, such as 3.2")],
) -> None:
    """Take a version back, or one correction of it, by a version that says so; undoing that brings it back."""
    home = start(flows=False)
    from lungml.reading.corrections import Undo
    from tasks.corrections import undo as take_back

    found = re.fullmatch(r"([1-9][0-9]{0,8})(?:\.([1-9][0-9]{0,8}))?", what)
    if not found:
        raise typer.BadParameter(f"{what!r} is no VERSION or VERSION.N, such as 3 or 3.2")
    version, part = found.groups()
    named = Undo(version=int(version), correction=int(part) if part else None)
    kept = take_back(home, named)
    out.print(f"version {kept.number} undoes {named.name}; to bring it back: luna corrections undo {kept.number}")


@app.command("list")
def list_all(
    as_json: Annotated[bool, typer.Option("--json", help="everything, notes too, for a program")] = False,
) -> None:
    """Every correction, and what becomes of it in the next training; a later one of a reader supersedes an earlier."""
    home = start(flows=False)
    from tasks.corrections import list_corrections

    rows, note = list_corrections(home)
    if note:
        print_note(note)
    if as_json:
        out.print_json(data=[_plain(row) for row in rows], indent=1)
        return
    if not rows:
        out.print("no corrections are kept yet; luna corrections add brings them in")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("version", "series", "split"):
        table.add_column(column, no_wrap=True)
    for column in ("reader", "bundle", "what"):  # they give way where the terminal is narrow
        table.add_column(column, overflow="fold")
    table.add_column("what becomes of it")
    for row in rows:
        uid = row.series_uid
        series = f"…{uid[-SHORT:]}" if len(uid) > SHORT + 1 else uid
        bundle = row.bundle.removeprefix("models:/")
        cells = (row.name, series, row.split, row.reader, bundle, row.what, row.outcome)
        table.add_row(*map(Text, cells))
    out.print(table)


def _added(one: Added) -> str:
    """What became of a file that was taken."""
    version = one.version
    if version is None or version.file is None:
        raise ValueError(f"{one.path}: was not taken")
    if not one.new:
        undone = ""
        if one.undone_by is not None:
            undone = f", which version {one.undone_by} undid; luna corrections undo {one.undone_by} brings it back"
        return f"{one.path}: added already, as version {version.number}{undone}"
    file = version.file
    count = len(file.corrections)
    learned = "" if one.split == "train" else f", a {one.split} scan: kept, not trained on"
    return (
        f"{one.path}: version {version.number}, {count} correction{'s' * (count != 1)} of {file.series_uid} "
        f"by {file.reader}{learned}"
    )


def _plain(row: Listed) -> dict[str, object]:
    return {
        "version": row.name,
        "added": row.added,
        "series_uid": row.series_uid or None,
        "split": row.split or None,
        "reader": row.reader or None,
        "bundle": row.bundle or None,
        "what": row.what,
        "outcome": row.outcome,
        "uses": list(row.uses),
        "text": row.text,
    }
