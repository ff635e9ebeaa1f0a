"""The `luna model` commands: bring bundles in, see which is used and why, and decide it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flows.terminal import out, print_note, start

if TYPE_CHECKING:
    from tasks.promotion import Listed, Moved

app = typer.Typer(no_args_is_help=True, help="Bring models in, see which are used, and decide it by hand.")

ALIAS_HELP = "champion, or demo for a bundle of synthetic scans, which is never more"
BECAUSE_HELP = "why, in one line, for those who come after; kept with the bundle, so name no person"
NOT_CLINICAL = "Not for clinical use."


@app.command("import")
def import_model(
    segmentation: Annotated[Path, typer.Option(help="the published U-Net's .state file")],
    nodule: Annotated[Path, typer.Option(help="the published nodule classifier's")],
    malignancy: Annotated[Path, typer.Option(help="the published malignancy classifier's")],
) -> None:
    """Register published weights as a bundle and print its URI."""
    home = start(flows=False)
    from tasks.bundles import import_published

    out.print(import_published(home, segmentation, nodule, malignancy))


@app.command("list")
def list_models(
    history: Annotated[
        bool, typer.Option("--history", help="also the gate's reasons, and who got or lost an alias, when and why")
    ] = False,
) -> None:
    """Every registered bundle: what it is used as, what it learned from, and what the gate said of it."""
    home = start(flows=False)
    from tasks.promotion import list_bundles

    bundles = list_bundles(home)
    for damaged in (one for one in bundles if one.problem):
        print_note(f"{damaged.uri}: {damaged.problem}")
    show_bundles(bundles, history, out)


@app.command()
def promote(
    uri: Annotated[str, typer.Argument(metavar="URI", help="models:/luna/N or models:/luna@alias")],
    because: Annotated[str, typer.Option(metavar="TEXT", help=BECAUSE_HELP)],
    alias: Annotated[str, typer.Option(help=ALIAS_HELP)] = "champion",
) -> None:
    """Make a bundle the one to use, whatever the gate said: a person's decision, written down as that.

    One that an older version of luna registered, so that MLflow cannot load it, is registered anew first.
    """
    home = start(flows=False)
    from tasks.promotion import list_bundles
    from tasks.promotion import promote as move

    moved = move(home, uri, alias, because, by="human")  # type: ignore[arg-type]
    (promoted,) = [listed for listed in list_bundles(home) if listed.uri == (moved.renewed or moved.uri)]
    if moved.renewed:
        print_note(f"{moved.renewed} is of an older version of luna: registered anew as {moved.uri}")
    if promoted.decision.startswith("refused"):
        print_note(f"the gate had {promoted.decision}")
    show_move(moved, out)


@app.command()
def rollback(
    because: Annotated[str, typer.Option(metavar="TEXT", help=BECAUSE_HELP)] = "rolled back",
) -> None:
    """Use the champion before this one again; this one becomes the previous one, so that twice changes nothing."""
    home = start(flows=False)
    from tasks.promotion import rollback as move

    show_move(move(home, because), out)


@app.command()
def lineage(
    uri: Annotated[str, typer.Argument(metavar="URI", help="models:/luna/N, models:/luna@alias or models:/m-...")],
    as_json: Annotated[bool, typer.Option("--json", help="everything, for a program")] = False,
) -> None:
    """Where a bundle or a model comes from: run, code, parameters, data and parents, back to the beginning.

    It is noted where a bundle's files are no longer those that its manifest lists.
    """
    home = start(flows=False)
    from flows.show_lineage import show_lineage
    from tasks.lineage import BundleLineage, lineage_of
    from tasks.manifest import described_at, verify

    found = lineage_of(home, uri)
    if as_json:
        out.print_json(data=found.as_dict(), indent=1)
        return
    described = described_at(home, found.uri) if isinstance(found, BundleLineage) else None
    show_lineage(found, described, out)
    if described and described.manifest.exists():
        for difference in verify(home, found.uri):
            print_note(difference)


@app.command()
def reproduce(
    uri: Annotated[str, typer.Argument(metavar="URI", help="models:/luna/N or models:/luna@alias")],
    luna_dir: Annotated[Path | None, typer.Option(help="the scans that made it, when they lie elsewhere now")] = None,
    tables: Annotated[Path | None, typer.Option(help="their tables, when those do not lie with them")] = None,
    lidc: Annotated[Path | None, typer.Option(help="LIDC's XML files, where it was made with them")] = None,
    more: Annotated[Path | None, typer.Option(help="LIDC's DICOM series, where it was made with them")] = None,
    any_code: Annotated[
        bool, typer.Option("--any-code", help="go on though this is not the code that made it, and say so")
    ] = False,
) -> None:
    """Train a bundle anew from what is known of it and compare: status 0 only where all weights and scores are equal.

    The new bundle stands beside the old one, without an alias.
    """
    home = start()
    from flows.reproduce import reproduce as run
    from flows.settings import tell_the_story
    from flows.show_lineage import show_reproduction
    from flows.temporary_server import ready_server
    from tasks.reproducible import check_code, read_recorded

    tell_the_story()
    check_code(read_recorded(home, uri), any_code)  # before a server is started for it
    ready_server()
    folders = (None if folder is None else str(folder.absolute()) for folder in (luna_dir, tables, lidc, more))
    result = run(uri, *folders, any_code=any_code)
    show_reproduction(result, out)
    out.print(NOT_CLINICAL)
    raise typer.Exit(0 if result.equal else 1)


def show_move(moved: Moved, console: Console) -> None:
    """Print which bundle is used now, which was before, and how to go back."""
    console.print(f"{moved.uri} is @{moved.alias}", soft_wrap=True)
    if moved.before and moved.before != moved.uri:
        role = ", now @previous" if moved.alias == "champion" else ""
        console.print(f"before     {moved.before}{role}", soft_wrap=True)
    console.print(f"recorded   {moved.line}", soft_wrap=True)
    if moved.before and moved.before != moved.uri and moved.alias == "champion":
        console.print("go back    luna model rollback")
    console.print(NOT_CLINICAL)


def show_bundles(bundles: Sequence[Listed], history: bool, console: Console) -> None:
    """Print a row for each bundle and, if asked, the gate's reasons and every move of an alias, in order of time."""
    if not bundles:
        console.print("no bundle is registered yet; luna demo or luna run trains one, luna model import brings one in")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("bundle", "used as", "recipe", "scans", "models", "registered", "gate"):
        table.add_column(column, no_wrap=True)
    for one in bundles:
        table.add_row(
            one.uri,
            " ".join(f"@{alias}" for alias in one.aliases),
            *_fields(one),
            f"{one.registered:%Y-%m-%d}",
            one.decision.partition(":")[0],
        )
    console.print(table)
    if history:
        for one in reversed(bundles):
            if one.decision:
                console.print(f"{one.uri} the gate: {one.decision}", soft_wrap=True)
        moves = [(line, place, one.uri) for one in bundles for place, line in enumerate(one.history)]
        for line, _, uri in sorted(moves, key=lambda move: (move[0].partition(" ")[0], move[1])):
            when, _, what = line.partition(" ")
            console.print(f"{when}  {uri} {what}", soft_wrap=True)
    console.print(NOT_CLINICAL)


def _fields(one: Listed) -> tuple[str, str, str]:
    """Recipe, kind of scans and number of models of each member."""
    from tasks.registry import BUNDLE_MEMBERS, member_uris

    if not one.fields:
        return "unreadable", "", ""
    counts = "+".join(str(len(member_uris(one.fields, member))) for member in BUNDLE_MEMBERS)
    return one.fields["recipe"], "synthetic" if one.fields["origin"] == "phantom" else "real", counts
