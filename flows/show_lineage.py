"""Where a bundle comes from, and whether it came out the same again, on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lungml.wording import commit
from tasks.lineage import BundleLineage, ModelLineage
from tasks.manifest import Described
from tasks.recorded import FOLDERS
from tasks.registry import THRESHOLDS
from tasks.reproduction import ComparedStage, Reproduction, Value
from tasks.runs import DataFacts
from tasks.tracking import git_commit

WIDTH = 80
SHOWN = ("python", "torch", "numpy", "cpu", "gpu", "threads")  # of the environment
MOST = 12  # differing numbers of a stage that are printed; the file has all


def show_lineage(lineage: BundleLineage | ModelLineage, described: Described | None, console: Console) -> None:
    """Print a tree: the bundle, its run, its models, their data and parents."""
    shown: set[str] = set()
    if isinstance(lineage, ModelLineage):
        tree = _model("", lineage, shown)
    else:
        tree = Tree(_line(lineage.uri, "of synthetic scans" if lineage.fields["origin"] == "phantom" else ""))
        for text in _about(lineage, described):
            tree.add(Text(text))
        for member, model in lineage.members:
            tree.add(_model(member, model, shown))
    console.print(tree, width=min(WIDTH, console.width))
    console.print("Not for clinical use.")


def show_reproduction(result: Reproduction, console: Console) -> None:
    """Print a row for every stage, the numbers that differ, and the verdict."""
    table = Table(title="Then and now", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "compared", "equal", "weights"):
        table.add_column(column, justify="left" if column in ("stage", "weights") else "right")
    for stage in result.stages:
        compared, different = len({*stage.then, *stage.now}), set(stage.different)
        weights = [name for name in stage.then if name.startswith("sha256 of weights")]
        same = "" if not weights else "differ" if different & set(weights) else "the same"
        table.add_row(stage.name, str(compared), str(compared - len(different)), same)
    console.print(table)
    for stage in result.stages:
        if stage.different:
            console.print(_differences(stage))
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(result.words, soft_wrap=True)


def _about(lineage: BundleLineage, described: Described | None) -> Iterable[str]:
    fields, run = lineage.fields, lineage.run
    if lineage.aliases:
        yield "used as " + " ".join(f"@{alias}" for alias in lineage.aliases)
    yield f"gate {lineage.decision or 'was not asked'}"
    if run:
        yield f"run {run.run_id}"
        yield f"pipeline {lineage.pipeline_id or 'unknown'}"
        yield _environment(run.environment)
    yield f"code {_code(lineage.commit)}"
    thresholds = ", ".join(f"{name.partition('_')[0]} {fields[name]:.4g}" for name in THRESHOLDS)
    yield f"recipe {fields['recipe']}; thresholds {thresholds}"
    if lineage.parameters:
        told = {name: value for name, value in sorted(lineage.parameters.items()) if value not in (None, {}, [])}
        folders = {name: told.pop(name) for name in FOLDERS if name in told}  # which they were is not kept
        said = [f"{name} {value}" for name, value in told.items()]
        yield "parameters " + ", ".join([*said, *(f"{name} given" for name, given in folders.items() if given)])
    if run and run.data:
        yield from _data(run.data)
    if described:
        for what, path in (("manifest", described.manifest), ("card", described.card)):
            yield f"{what} {path}" if path.exists() else f"{what}: none was written here"
    yield from lineage.missing


def _model(member: str, model: ModelLineage, shown: set[str]) -> Tree:
    tree = Tree(_line(member, model.uri))
    if model.uri in shown:
        tree.add(Text("as above"))
        return tree
    shown.add(model.uri)
    run = model.run
    if run:
        tree.add(Text(f"run {run.run_id}"))
        tree.add(Text(f"{run.name}; recipe {model.recipe or 'unknown'}, seed {run.params.get('seed', 'unknown')}"))
        tree.add(Text(f"code {_code(run.commit)}"))
        for text in _data(run.data):
            tree.add(Text(text))
    if model.settings:
        other = tree.add(Text("other settings than the recipe's"))
        for name, (own, recipes) in model.settings.items():
            other.add(Text(f"{name} {own}, not {recipes}"))
    for text in model.missing:
        tree.add(Text(text))
    for stage, parent in model.parents.items():
        tree.add(_model(f"learned after {stage}", parent, shown))
    return tree


def _data(data: Mapping[str, DataFacts]) -> Iterable[str]:
    for split, facts in data.items():
        counts = ", ".join(f"{count} {what}" for what, count in facts.sizes.items())
        yield f"{split} {facts.digest[:12]}: {counts or 'sizes unknown'}"


def _code(made_by: str) -> str:
    """A commit, whether files differed from it, and whether it is the one here."""
    if not made_by:
        return "of no known commit"
    here = git_commit()
    dirty = ", with changed files" if made_by.endswith("-dirty") else ""
    beside = "" if made_by == here else f"; here is {commit(here, 'no known commit')}"
    return f"{made_by.removesuffix('-dirty')[:12]}{dirty}{beside}"


def _environment(environment: Mapping[str, str]) -> str:
    told = ", ".join(f"{name} {environment[name]}" for name in SHOWN if name in environment)
    return f"environment {told or 'unknown'}"


def _line(*texts: str) -> Text:
    return Text("  ".join(text for text in texts if text), overflow="fold")


def _differences(stage: ComparedStage) -> Table:
    different = stage.different
    more = f", {MOST} of {len(different)}" if len(different) > MOST else ""
    table = Table(title=f"Different in {stage.name}{more}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", overflow="fold")
    table.add_column("then", justify="right", no_wrap=True)
    table.add_column("now", justify="right", no_wrap=True)
    for name in different[:MOST]:
        table.add_row(name, _value(stage.then.get(name)), _value(stage.now.get(name)))
    return table


def _value(value: Value) -> str:
    if isinstance(value, str):
        return value[:16]
    return "none" if value is None else f"{value:.10g}"
