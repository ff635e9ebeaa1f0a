"""Every command of the documents can be typed as it stands, and something runs it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows.cli import app
from tests.docs.commands import (
    PROGRAMS,
    PROJECT,
    Command,
    blocks_of,
    commands_of,
    documented,
    is_shell,
    pages,
    program_of,
    usages,
    words_of,
)
from tests.docs.covered import COVERED
from tests.docs.plan import STEPS, Step
from tests.docs.run import named_blocks

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Click's own or Typer's copy of it
DOCUMENTED = documented()
TYPED = sorted({command.text for command in DOCUMENTED if not command.usage})
USAGES = sorted({command.text for command in DOCUMENTED if command.usage})
EXAMPLES = [name for _, name in named_blocks()]
# What stands for a number, where a usage names none.
NUMBERS = {"N": "3", "S": "1"}
PLAN = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
MAKEFILE = (PROJECT / "Makefile").read_text()


def luna_commands(texts: list[str]) -> list[str]:
    return [text for text in texts if program_of(text) == "luna"]


@cache
def luna() -> Any:
    return typer.main.get_command(app)


def leaf_of(words: list[str]) -> tuple[Any, list[str], list[str]]:
    """The command that some words call, the names on the way to it, and what is left for it."""
    command = luna()
    names: list[str] = []
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {' '.join([*names, words[0]])}"
        command, names, words = command.commands[words[0]], [*names, words[0]], words[1:]
    return command, names, words


def parse(text: str) -> None:
    """See that the command would accept what is typed, without running it.

    Raises:
        UsageError: it would not.
    """
    _, (_, *words) = words_of(text)
    command, names, rest = leaf_of([NUMBERS.get(word, word) for word in words])
    assert not hasattr(command, "commands"), f"{text}: is a group of commands"
    command.make_context(" ".join(["luna", *names]), rest)


@cache
def call_of(text: str) -> tuple[tuple[str, ...], set[str]]:
    """Which command is called, and with which options."""
    _, (_, *words) = words_of(text)
    _, names, rest = leaf_of(words)
    return tuple(names), {word.partition("=")[0] for word in rest if word.startswith("--")}


@pytest.mark.parametrize("text", luna_commands([*TYPED, *USAGES]))
def test_luna_takes_what_is_documented(text: str) -> None:
    parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("luna run --luna-dir DIR --no-such-option", "No such option"),
        ("luna read scan.mhd --out DIR", "Missing option"),
        ("luna data phantom OUT --scans many", "--scans"),
        ("luna model list extra", "unexpected extra argument"),
    ],
)
def test_what_luna_would_refuse_is_found(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert why in refused.value.format_message()  # type: ignore[attr-defined]


def test_a_command_that_is_none_is_found() -> None:
    with pytest.raises(AssertionError, match="no command model forget"):
        parse("luna model forget")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_and_options_in_the_prose_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(luna [a-z][^`]*)`", prose.replace("\n", " ")):
        for usage in [line for _, line in usages("| command | |\n| `{}` | |".format(span.replace("|", "\\|")))]:
            words = [word.strip(".,;:()[]") for word in usage.split()[1:]]
            command, _, rest = leaf_of(words)
            options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - options - {"--help"}
            assert not unknown, f"`{span}`: {', '.join(unknown)}"


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))


@pytest.mark.parametrize("text", [text for text in TYPED if program_of(text) == "make"])
def test_a_make_target_is_there(text: str) -> None:
    assert set(shlex.split(text)[1:]) <= make_targets()


@pytest.mark.parametrize("target", sorted(make_targets()))
def test_a_make_target_does_what_its_line_says(target: str, tmp_path: Path) -> None:
    assert shutil.which("make")
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    said = subprocess.run(["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    wanted = {
        "setup": "pip install", "demo": "bin/luna demo", "test": "-m pytest", "check": "bin/ruff check",
        "audit": "-m tests.audit", "bench": "-m tests.benchmarks.run", "drills": "-m tests.drills.run",
        "docs": "-m tests.docs.run", "up": "bin/luna up", "clean": "rm -rf", "help": "grep",
    }  # fmt: skip
    assert wanted[target] in said.stdout


@pytest.mark.parametrize("target", sorted(make_targets()))
def test_a_make_target_is_told_by_help(target: str) -> None:
    assert re.search(rf"^{target}:.*## \w", MAKEFILE, flags=re.MULTILINE)


def parameters_of(deployment: str) -> set[str]:
    """What a deployment can be given."""
    assert deployment.startswith("luna/")
    (entrypoint,) = [one["entrypoint"] for one in PLAN["deployments"] if one["name"] == deployment[len("luna/") :]]
    module, _, function = entrypoint.rpartition(".")
    return set(getattr(import_module(module), function).parameters.properties)


@pytest.mark.parametrize("text", [text for text in TYPED if text.startswith("prefect deployment run")])
def test_a_deployment_is_there_and_takes_what_it_is_given(text: str) -> None:
    words = shlex.split(text)[3:]
    known = parameters_of(words[0])
    if "--params" in words:
        assert json.loads(words[words.index("--params") + 1]).keys() <= known


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_parameters_in_the_prose_are_those_of_the_pipeline(page: Path) -> None:
    known = parameters_of("luna/end-to-end")
    for given in re.findall(r"--params '({.*?})'", page.read_text(), flags=re.DOTALL):
        assert json.loads(given).keys() <= known


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_block_holds_commands_or_says_what_it_holds(page: Path) -> None:
    name = str(page.relative_to(PROJECT))
    for command in commands_of(page.read_text(), name):
        assert program_of(command.text) in PROGRAMS, f"{command.where}: {command.text!r} is no command we know"
    for block in blocks_of(page.read_text(), name):
        hidden = [line for line in block.lines if line.startswith(("luna ", "make ", "prefect "))]
        assert is_shell(block) or not hidden, f"{name}:{block.line}: its commands are not looked at"


def runners_of(text: str) -> list[Any]:
    return [*(step for step in STEPS if step.command == text), *(row for row in COVERED if row.matches(text))]


@pytest.mark.parametrize("text", [*TYPED, *EXAMPLES])
def test_something_runs_it(text: str) -> None:
    """If not: a step in tests/docs/plan.py lets `make docs` run it, a row in tests/docs/covered.py names a test."""
    assert runners_of(text)


@pytest.mark.parametrize("usage", USAGES)
def test_a_way_of_using_it_is_run(usage: str) -> None:
    """By a step of its own, or by a command of equal name with all of its options."""
    names, options = call_of(usage)
    alike = [text for text in luna_commands(TYPED) if call_of(text)[0] == names and options <= call_of(text)[1]]
    assert runners_of(usage) or any(runners_of(text) for text in alike)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.command)
def test_no_step_is_left_over(step: Step) -> None:
    assert step.command in {*TYPED, *USAGES, *EXAMPLES}
    if step.runs and program_of(step.runs) == "luna":
        ours, theirs = call_of(step.runs), call_of(step.command)
        assert ours[0] == theirs[0]
        assert theirs[1] <= ours[1]


def test_no_command_has_two_steps() -> None:
    commands = [step.command for step in STEPS]
    assert sorted(set(commands)) == sorted(commands)


@pytest.mark.parametrize("row", COVERED, ids=lambda row: row.pattern)
def test_no_row_is_left_over(row: Any) -> None:
    matched = [text for text in [*TYPED, *EXAMPLES] if row.matches(text)]
    assert matched
    assert not set(matched) & {step.command for step in STEPS}
    assert bool(row.by) != bool(row.why)


@cache
def names_of_tests(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("node", sorted({node for row in COVERED for node in row.by}))
def test_a_named_test_is_there(node: str) -> None:
    file, _, name = node.partition("::")
    assert (PROJECT / file).is_file()
    assert not name or name in names_of_tests(PROJECT / file)


@pytest.mark.parametrize("row", [row for row in COVERED if row.why], ids=lambda row: row.pattern)
def test_how_far_a_command_was_tried_is_said_on_its_page(row: Any) -> None:
    for command in DOCUMENTED:
        if row.matches(command.text):
            assert row.said in heading_over(command), f"{command.where} stands under {heading_over(command)!r}"


def heading_over(command: Command) -> str:
    lines = (PROJECT / command.page).read_text().splitlines()[: command.line]
    return next(line for line in reversed(lines) if line.startswith("## "))


PAGE = """
```
make x     what it does
luna data verify  --luna-dir DIR    # every byte
LUNA_WORKERS=dask:4 luna \\
    status
```

```text
luna is not looked at here
```

```
a layout    and what it is
```

```console
$ pip install 'a[b]' && curl -d '{"a": "# no comment"}' http://x
python - <<'PY'
luna = 1
PY
luna up
```

| command | what |
| --- | --- |
| `luna model list`, `promote URI` | |
| `luna corrections add\\|list` | |
"""


def test_commands_are_found_with_their_lines() -> None:
    found = commands_of(PAGE, "p.md")
    assert [(command.line, command.text, command.usage) for command in found if command.line < 26] == [
        (3, "make x", False),
        (4, "luna data verify --luna-dir DIR", False),
        (5, "LUNA_WORKERS=dask:4 luna status", False),
        (18, "pip install 'a[b]'", False),
        (18, """curl -d '{"a": "# no comment"}' http://x""", False),
        (19, "python - <<'PY'", False),
        (22, "luna up", False),
    ]
    assert [command.text for command in found if command.usage] == [
        "luna model list",
        "luna model promote URI",
        "luna corrections add",
        "luna corrections list",
    ]


def test_brackets_of_a_usage_are_dropped_and_others_stay() -> None:
    assert words_of("A=1 luna read SCAN... [--compare URI] 'x[y]'") == (
        {"A": "1"},
        ["luna", "read", "SCAN...", "--compare", "URI", "x[y]"],
    )
