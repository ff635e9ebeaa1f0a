"""What of `lungml` does a program use, and how? Writes docs/api.md from the code's own docstrings.

To put a function on the page, name it in `SECTIONS`; a module that is not there (yet) is left out.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lungml.files import write_text_atomic
from tests.docs.commands import PROJECT

PAGE = PROJECT / "docs" / "api.md"
WIDTH = 118
PLAIN_METHODS = ("as_dict", "to_json", "from_json", "to_text", "rows", "forward")  # what any record has
HEADINGS = ("Args", "Returns", "Raises", "Attributes", "Yields")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A question, and what answers it: module below `lungml` -> its names, in the order of the page."""

    title: str
    words: str
    names: Mapping[str, tuple[str, ...]]


SECTIONS: tuple[Section, ...] = (
    Section(
        title="What does a scan hold?",
        words="Every reader checks all that it can; what is no whole chest CT is refused with one line.",
        names={
            "ct": ("read_scan", "Scan", "find_scans"),
            "geometry": ("Grid", "xyz_to_irc", "irc_to_xyz"),
        },
    ),
    Section(
        title="Where are scans that can be experimented with?",
        words="",
        names={"phantom": ("PhantomSettings", "write_phantoms", "draw_phantom")},
    ),
    Section(
        title="What do the tables say?",
        words="",
        names={
            "luna": ("read_luna", "LunaData", "Nodule"),
            "frozen_split": ("freeze_split",),
            "lidc_report": ("convert_lidc",),
        },
    ),
    Section(
        title="How is a scan stored and cut?",
        words="Stores are Zarr v3; each carries the key that it was made under, and is never read half-written.",
        names={
            "store": ("write_scan", "read_volume", "read_mask"),
            "verify": ("verify_stores",),
            "masks": ("annotation_mask",),
            "crops": ("cut_boxes", "cut_slabs"),
        },
    ),
    Section(
        title="Which nodules does a scan hold?",
        words="`find_nodules` is all three steps; each can be had alone.",
        names={
            "findings": (
                "Bundle",
                "Finding",
                "find_nodules",
                "ask",
                "judge",
                "write_findings",
                "read_findings",
            ),
            "segment": ("segment",),
            "candidates": ("GroupingSettings", "group_candidates"),
            "classify": ("classify",),
            "inference": ("InferenceSettings",),
            "calibration": ("Calibration",),
        },
    ),
    Section(
        title="How does a reader see and correct them?",
        words="",
        names={
            "reading.record": ("Reading", "reading_json", "submission_csv"),
            "reading.page": ("write_page",),
            "reading.markups": ("markups_json",),
            "reading.correction_schema": ("Correction", "parse_corrections"),
            "reading.corrections": ("read_versions",),
            "scan_figures": ("draw_slices",),
        },
    ),
    Section(
        title="How good are they?",
        words="",
        names={
            "score": ("score_table", "Table"),
            "froc": ("froc", "FrocResult"),
            "submission": ("score_submission",),
            "compare": ("compare", "Difference"),
            "gate": ("GateSettings", "decide"),
        },
    ),
    Section(
        title="How does a model learn?",
        words="Trainings of the pipeline run these in a process of their own, `python -m lungml.job`.",
        names={
            "recipes": ("best", "report", "demo"),
            "recipes.variants": ("recipe_of",),
            "fit": ("fit", "FitResult"),
            "fit_settings": ("FitSettings",),
            "models.unet": ("UNetConfig", "UNet"),
            "models.nodule_net": ("NoduleNetConfig", "NoduleNet"),
        },
    ),
    Section(
        title="Where do things lie, and what can be wrong?",
        words="",
        names={"home": ("Home",), "errors": ("LunaError",)},
    ),
)

# A test runs it and compares what it prints with `PRINTED`.
EXAMPLE = """\
from pathlib import Path

import numpy as np
import torch

from lungml.findings import Bundle, find_nodules, read_findings, write_findings
from lungml.geometry import irc_to_xyz
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet, UNetConfig
from lungml.phantom import PhantomSettings, draw_phantom

# A drawn scan; a real one comes from lungml.ct.read_scan(Path("scan.mhd")).
scan = draw_phantom("1.2.3", np.random.default_rng(7), PhantomSettings(size_irc=(40, 96, 96), nodules=(1, 1)))
(nodule,) = scan.nodules
print(scan.hu.shape, scan.hu.dtype, "one nodule of", round(nodule.diameter_mm, 1), "mm")
print("its centre, mm (LPS):", irc_to_xyz(np.array(nodule.center_irc), scan.grid).round(1).tolist())

# Untrained networks; trained ones come from tasks.bundles.load_bundle(home, "models:/luna@champion", "cpu").
generator = torch.Generator().manual_seed(0)
bundle = Bundle(
    segmentation=UNet(UNetConfig(depth=2, width=2), generator=generator),
    nodule=NoduleNet(generator=generator),
    malignancy=NoduleNet(generator=generator),
)
findings = find_nodules(scan.hu, scan.grid, bundle)

table = Path("findings.csv")
write_findings(table, scan.series_uid, findings)
again = read_findings(table)
print("every candidate is a row:", len(again) == len(findings) > 0)
print("the most probable nodule first:", again[0].prob_nodule == max(one.prob_nodule for one in again))
print("why each ended where it did:", all(one.reason for one in again))
"""
PRINTED = """\
(40, 96, 96) int16 one nodule of 7.3 mm
its centre, mm (LPS): [-138.0, -128.8, -89.4]
every candidate is a row: True
the most probable nodule first: True
why each ended where it did: True
"""

INTRODUCTION = """\
# The library

`lungml` is luna without the pipeline: scans, masks, crops, models, training, findings and scores. It imports neither
Prefect nor MLflow, importing a module does nothing, and no function seeds or reads a global. This page is written from
the code by `make docs`: what a program uses from outside, not all there is. **Not for clinical use.**

Words that return: `_irc` is (index, row, col) in voxels, `_xyz` mm in patient axes (LPS), `_mm` and `_hu` are units. A
*candidate* is a place to look, a *finding* a scored answer, a *nodule* the truth. Arrays of Hounsfield units are int16
and never clipped until a network sees them. Randomness comes from a generator that the caller passes in. What a person
can mend is a [`LunaError`](#lungmlerrors) of one line.

## An example
"""


class PageError(Exception):
    """The page names something that the code does not have."""


def page_text(project: Path = PROJECT) -> str:
    """All of docs/api.md."""
    parts = [INTRODUCTION, f"```python\n{EXAMPLE}```\n", f"prints\n\n```text\n{PRINTED}```\n"]
    for section in SECTIONS:
        there = {module: names for module, names in section.names.items() if source_of(project, module).is_file()}
        if not there:
            continue
        parts.append(f"## {section.title}\n" + (f"\n{section.words}\n" if section.words else ""))
        parts += [module_text(project, module, names) for module, names in there.items()]
    return "\n".join(parts)


def source_of(project: Path, module: str) -> Path:
    """A module's file; a package's is its `__init__.py`."""
    path = project / "lungml" / Path(*module.split("."))
    package = path / "__init__.py"
    return package if package.is_file() else path.with_suffix(".py")


def module_text(project: Path, module: str, names: Sequence[str]) -> str:
    """A module's heading, its question, and what of it is on the page.

    Raises:
        PageError: a name is not there, or says nothing of itself.
    """
    tree = ast.parse(source_of(project, module).read_text(encoding="utf-8"))
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    question = (ast.get_docstring(tree) or "").splitlines()[0]
    parts = [f"### lungml.{module}\n\n{filled(question)}\n"]
    for name in names:
        if name not in defined or not ast.get_docstring(defined[name]):
            raise PageError(
                f"lungml.{module}.{name} is not there, or has no docstring; mend SECTIONS of tests.docs.api"
            )
        parts.append(entry(defined[name]))
    return "\n".join(parts)


def entry(node: ast.FunctionDef | ast.ClassDef) -> str:
    """A function or class: how it is called, what it does, and what goes in and comes out."""
    said = split_docstring(ast.get_docstring(node) or "")
    bullets = [bullet(heading, item) for heading, items in said.lists for item in items]
    if isinstance(node, ast.ClassDef):
        bullets += public_methods(node)
    return "\n".join(["```py", signature(node), "```", filled(said.text), "", *bullets]).rstrip() + "\n"


@dataclass(frozen=True, kw_only=True)
class Docstring:
    """A docstring's first paragraph, and its lists: heading -> items, each `name: words` or words alone."""

    text: str
    lists: tuple[tuple[str, tuple[str, ...]], ...]


def split_docstring(docstring: str) -> Docstring:
    """Part a docstring of Google's style; of the text before the lists the first paragraph is kept."""
    pieces = re.split(rf"^({'|'.join(HEADINGS)}):\n", docstring, flags=re.MULTILINE)
    paragraph = " ".join(re.split(r"\n\s*\n", pieces[0].strip())[0].split())
    lists = tuple((heading, tuple(items_of(body))) for heading, body in zip(pieces[1::2], pieces[2::2]))
    return Docstring(text=paragraph, lists=lists)


def items_of(body: str) -> Iterator[str]:
    """The items of a list, each on one line."""
    item: list[str] = []
    for line in textwrap.dedent(body).splitlines():
        if line and not line.startswith(" ") and item and re.match(r"[\w*, ]+: |[A-Z]\w+: ", line):
            yield " ".join(item)
            item = []
        if line.strip():
            item.append(line.strip())
    if item:
        yield " ".join(item)


def bullet(heading: str, item: str) -> str:
    """An item as a bullet: what it is about as code, and the first sentence about it."""
    name, colon, words = item.partition(": ")
    if not colon or not re.fullmatch(r"[\w*]+(, [\w*]+)*", name):
        name, words = "", item
    about = ", ".join(f"`{one}`" for one in name.split(", ")) if name else ""
    verb = {"Returns": "returns", "Raises": "raises", "Yields": "yields"}.get(heading, "")
    head = " ".join(part for part in (verb, about) if part)
    return wrapped(f"{head}: {first_sentence(words)}")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends one."""
    return re.split(r"(?<=[^.\s][.!?])\s+(?=[A-Z`])", text, maxsplit=1)[0]


def wrapped(text: str) -> str:
    """A bullet of several lines."""
    return textwrap.fill(text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def filled(text: str) -> str:
    """A paragraph of several lines."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """How it is called: a function's own line; of a class its fields, or what its `__init__` takes."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return call(node.name, arguments_of(node.args), returns)
    made = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if made:
        return call(node.name, [one for one in arguments_of(made.args) if one != "self"], "")
    return call(node.name, fields_of(node), "")


def call(name: str, arguments: Sequence[str], returns: str) -> str:
    """On as few lines as hold it, broken between arguments."""
    lines = [f"{name}("]
    for n, argument in enumerate(arguments):
        piece = argument + ("" if n == len(arguments) - 1 else ",")
        if len(lines[-1]) + len(piece) > WIDTH - 14:
            lines.append("    ")
        lines[-1] += piece if lines[-1].endswith(("(", "    ")) else f" {piece}"
    if len(lines[-1]) + len(returns) >= WIDTH:
        lines.append("")
    lines[-1] += f"){returns}"
    return "\n".join(lines).replace("npt.NDArray[np.", "NDArray[").replace("npt.", "")


def arguments_of(given: ast.arguments) -> list[str]:
    """Each as it is written, with the star where keywords begin."""
    plain = [*given.posonlyargs, *given.args]
    first = len(plain) - len(given.defaults)
    written = [argument(one, given.defaults[n - first] if n >= first else None) for n, one in enumerate(plain)]
    if given.vararg:
        written.append(f"*{argument(given.vararg, None)}")
    elif given.kwonlyargs:
        written.append("*")
    written += [argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults)]
    return written


def argument(given: ast.arg, default: ast.expr | None) -> str:
    """`name: type = default`."""
    kind = f": {ast.unparse(given.annotation)}" if given.annotation else ""
    value = (" = " if kind else "=") + ast.unparse(default) if default is not None else ""
    return f"{given.arg}{kind}{value}"


def fields_of(node: ast.ClassDef) -> list[str]:
    """A dataclass's fields with their defaults, `...` for one that is made anew each time; below they are told."""
    fields = []
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            made = isinstance(one.value, ast.Call)
            value = "" if one.value is None else f"={'...' if made else ast.unparse(one.value)}"
            fields.append(one.target.id + value)
    return fields


def public_methods(node: ast.ClassDef) -> Iterator[str]:
    """A bullet for each method and property that says what it is, in the words of its first sentence."""
    for one in node.body:
        docstring = ast.get_docstring(one) if isinstance(one, ast.FunctionDef) else None
        if not isinstance(one, ast.FunctionDef) or one.name.startswith("_") or not docstring:
            continue
        if one.name in PLAIN_METHODS:
            continue
        kinds = {ast.unparse(decorator) for decorator in one.decorator_list}
        written = [name for name in arguments_of(one.args) if name not in ("self", "cls")]
        called = one.name if "property" in kinds else f"{one.name}({', '.join(name.split(':')[0] for name in written)})"
        words = " ".join(docstring.split("\n\n")[0].split())
        yield wrapped(f"`.{called}`: {first_sentence(words)}")


def main() -> int:
    """Write the page."""
    write_text_atomic(PAGE, page_text())
    print(f"{PAGE.relative_to(PROJECT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
