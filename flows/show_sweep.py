"""What of a home can go, as a table for a terminal."""

from __future__ import annotations

from datetime import datetime

from rich.table import Table

from tasks.sweeping import Swept
from tasks.unneeded import KINDS, Kind, Survey

# Where a kind lies, which its rows do not repeat; what is half-written lies anywhere.
PLACES: dict[Kind, str] = {
    "crops": "crops",
    "answers": "reports/answers",
    "findings": "reports/findings",
    "trainings": "checkpoints",
    "half-written": "",
}
FOLDER_CHARACTERS = 48  # the rest of its row takes 32 of a terminal's 80


def sweep_table(found: Survey) -> Table:
    """A row for each folder, with the sum of each kind over its rows and that of all at the end."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("nothing needs any more", overflow="fold", max_width=FOLDER_CHARACTERS)
    table.add_column("parts", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for kind in KINDS:
        entries = [entry for entry in found.entries if entry.kind == kind]
        if not entries:
            continue
        whole = size_in_words(sum(entry.size_bytes for entry in entries))
        title = f"{PLACES[kind]}/" if PLACES[kind] else kind
        table.add_row(title, f"{sum(entry.parts for entry in entries)}", "", whole)
        for entry in sorted(entries, key=lambda entry: -entry.size_bytes):
            day = f"{datetime.fromtimestamp(entry.last).astimezone():%Y-%m-%d}"
            place = f"  {entry.folder.relative_to(PLACES[kind])}"
            table.add_row(place, f"{entry.parts}", day, size_in_words(entry.size_bytes))
    table.add_row("all of it", f"{sum(entry.parts for entry in found.entries)}", "", size_in_words(found.size_bytes))
    return table


def swept_lines(swept: Swept) -> list[str]:
    """What a sweep did, and what it left alone."""
    gone = f"{size_in_words(swept.size_bytes)} removed; a run makes again what it wants of it"
    return [*(f"left alone: {line}" for line in swept.left), gone]


def size_in_words(size_bytes: int) -> str:
    """A size with the unit that fits it, such as 12.3 GB."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size_bytes >= 0.95 * 10**power:
            return f"{size_bytes / 10**power:.1f} {unit}"
    return f"{size_bytes} B"
