"""How does one page of words, tables and pictures become HTML and Markdown?

Both come from the same blocks, so that they say the same. The HTML is one file that asks nothing of a network and runs
no script; the Markdown has no pictures. Every text is escaped: a name from a file is shown, never obeyed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #59626c; --page: #ffffff; --card: #f4f5f7; --line: #d5d9de;
  --warn: #fff3dc; --warn-line: #b86e00; --link: #0a5c93; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #a5adb6; --page: #15181b; --card: #1f2429;
  --line: #3a4149; --warn: #33270f; --warn-line: #e0a030; --link: #7cc0ee; }
  .plot img { filter: invert(.915) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.2rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .5rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
.note { color: var(--soft); font-size: .9rem; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .6rem .9rem; max-width: none; }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; list-style: none; font-size: .9rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
dl div { background: var(--card); border-radius: .5rem; padding: .7rem .8rem; }
dt, dd.note { font-size: .85rem; color: var(--soft); line-height: 1.35; }
dd { margin: 0; } dd.value { font-size: 1.45rem; font-weight: 600; line-height: 1.35; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.beside > div { max-width: 100%; } .beside p { max-width: 26rem; }
.beside .plots { width: 32rem; max-width: 100%; margin: .8rem 0; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
table { width: min-content; } caption, td, tbody th { white-space: nowrap; } caption { white-space: normal; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 500; } thead th { color: var(--soft); vertical-align: bottom; }
th.words, td.words { text-align: left; }
td:last-child, thead th:last-child { padding-right: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.scans { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 14.5rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--soft); margin-top: .3rem; }
figure img { display: block; width: 100%; height: auto; border-radius: .4rem; }
.plot img { max-width: 34rem; }
ul.items { max-width: 46rem; padding-left: 1.2rem; } ul.items li { margin: .25rem 0; }
@media (max-width: 40rem) { body { padding: .9rem; } table { font-size: .8rem; width: auto; }
  th, td { padding-right: .45rem; }
  tbody th { white-space: normal; min-width: 6.5rem; }
  .scans { grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); } }
@media print { :root { --ink: #000; --soft: #444; --page: #fff; --card: #f4f5f7; --line: #ccc; --warn: #fff3dc;
  --link: #000; } .plot img { filter: none; } nav { display: none; } body { max-width: none; padding: 0; }
  html { font-size: 9pt; } figure, .wide, dl div, .warning { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { overflow: visible; } .beside { gap: 0 1.5rem; } .beside .plots { width: 26rem; }
  .scans { grid-template-columns: repeat(4, 1fr); gap: .6rem; break-before: avoid; } }
""".strip()
# Nothing but what the file holds: no script, no request.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True)
class Words:
    """A paragraph; a "warning" stands out, a "note" stands back."""

    text: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Items:
    """A list of sentences."""

    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Numbers that matter: (what, value, a word more) each."""

    figures: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table; the first column names the rows.

    Attributes:
        caption: what it is.
        head: of the columns.
        rows: as long as the head each.
        words: columns that hold words, beside the first; the others hold numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.head)]
        if wrong:
            raise ValueError(f"{self.caption}: a row of {len(wrong[0])} cells under {len(self.head)} columns")


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Columns of blocks side by side, where there is room for that."""

    columns: Sequence[Sequence[Block]]


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture; `alt` says to whoever does not see it what it shows."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures side by side: "plots", which dark pages turn dark, or "scans", which stay as they are.

    Of scans Markdown has the captions, of plots nothing.
    """

    images: Sequence[Image]
    kind: str = "plots"


Block = Words | Items | Figures | Sheet | Beside | Gallery


@dataclass(frozen=True, kw_only=True)
class Part:
    """Blocks under a heading."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A title, what stands below it, and the parts."""

    title: str
    opening: Sequence[Block]
    parts: Sequence[Part]


def to_html(page: Page) -> str:
    """The page as one HTML file."""
    links = "".join(f'<li><a href="#{_anchor(part.heading)}">{escape(part.heading)}</a></li>' for part in page.parts)
    parts = "".join(
        f'<section aria-labelledby="{_anchor(part.heading)}">\n<h2 id="{_anchor(part.heading)}">'
        f"{escape(part.heading)}</h2>\n{_blocks(part.blocks)}</section>\n"
        for part in page.parts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(page.title)}</h1>\n{_blocks(page.opening)}</header>\n"
        f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav>\n<main>\n{parts}</main>\n</body>\n</html>\n'
    )


def to_markdown(page: Page) -> str:
    """The page as Markdown, without its pictures."""
    lines = [f"# {_plain(page.title)}", *map(_markdown, page.opening)]
    for part in page.parts:
        lines += [f"## {_plain(part.heading)}", *map(_markdown, part.blocks)]
    return "\n\n".join(line for line in lines if line) + "\n"


def _blocks(blocks: Sequence[Block]) -> str:
    return "".join(f"{_html(block)}\n" for block in blocks)


def _html(block: Block) -> str:
    if isinstance(block, Words):
        kind = f' class="{escape(block.kind)}"' if block.kind else ""
        return f"<p{kind}>{escape(block.text)}</p>"
    if isinstance(block, Items):
        return '<ul class="items">' + "".join(f"<li>{escape(text)}</li>" for text in block.texts) + "</ul>"
    if isinstance(block, Figures):
        return "<dl>" + "".join(_figure(*figure) for figure in block.figures) + "</dl>"
    if isinstance(block, Sheet):
        return _sheet(block)
    if isinstance(block, Beside):
        return '<div class="beside">' + "".join(f"<div>{_blocks(column)}</div>" for column in block.columns) + "</div>"
    return f'<div class="{escape(block.kind)}">' + "".join(_image(i, block.kind) for i in block.images) + "</div>"


def _figure(what: str, value: str, more: str) -> str:
    note = f'<dd class="note">{escape(more)}</dd>' if more else ""
    return f'<div><dt>{escape(what)}</dt><dd class="value">{escape(value)}</dd>{note}</div>'


def _sheet(sheet: Sheet) -> str:
    words = {0, *sheet.words}
    kinds = [' class="words"' if column in words else "" for column in range(len(sheet.head))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(text)}</th>' if text else "<td></td>" for kind, text in zip(kinds, sheet.head)
    )
    rows = "".join(
        f'<tr><th scope="row" class="words">{escape(row[0])}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:]))
        + "</tr>\n"
        for row in sheet.rows
    )
    # Focus lets a keyboard scroll what is wider than the window.
    head = f"<thead><tr>{head}</tr></thead>\n" if any(sheet.head) else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(sheet.caption)}"><table>'
        f"<caption>{escape(sheet.caption)}</caption>\n{head}<tbody>\n{rows}</tbody></table></div>"
    )


def _image(image: Image, kind: str) -> str:
    data = base64.b64encode(image.png).decode("ascii")
    caption = f"<figcaption>{escape(image.caption)}</figcaption>" if image.caption else ""
    return (
        f'<figure class="{escape(kind.removesuffix("s"))}">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(image.alt)}">{caption}</figure>'
    )


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _markdown(block: Block) -> str:
    if isinstance(block, Words):
        text = _plain(block.text)
        return f"> **{text}**" if block.kind == "warning" else text
    if isinstance(block, Items):
        return "\n".join(f"- {_plain(text)}" for text in block.texts)
    if isinstance(block, Figures):
        return "\n".join(
            f"- {_plain(what)}: **{_plain(value)}**" + (f", {_plain(more)}" if more else "")
            for what, value, more in block.figures
        )
    if isinstance(block, Sheet):
        words = {0, *block.words}
        line = ["---" if column in words else "---:" for column in range(len(block.head))]
        lines = [[_plain(cell) for cell in row] for row in (block.head, *block.rows)]
        table = ["| " + " | ".join(cells) + " |" for cells in (lines[0], line, *lines[1:])]
        return f"{_plain(block.caption)}:\n\n" + "\n".join(table)
    if isinstance(block, Beside):
        return "\n\n".join(text for column in block.columns for text in map(_markdown, column) if text)
    return "\n".join(f"- {_plain(image.caption)}" for image in block.images if block.kind == "scans")


def _plain(text: str) -> str:
    """One line of Markdown that shows the text as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))
