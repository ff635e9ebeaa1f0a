"""Which commands do the documents give, and where?"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SHELL = ("", "bash", "sh", "console")
PROGRAMS = ("luna", "make", "prefect", "mlflow", "python", ".venv/bin/python", "export", "source", "pip", "docker",
            "curl", "createdb", "cp", "tar", "mkdir")  # fmt: skip
FENCE = re.compile(r"^\s*```+\s*(\S*)\s*$")
ASSIGNMENT = re.compile(r"^[A-Z_]+=")
TABLE_HEAD = re.compile(r"^\|\s*command\s*\|", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a document.

    Attributes:
        text: on one line, single spaces, without comment and prompt.
        page: relative to the project.
        line: where it begins, from 1.
        usage: a way of using it (`luna read SCAN... [--compare URI]`), not a command to type: a table's.
    """

    text: str
    page: str
    line: int
    usage: bool = False

    @property
    def where(self) -> str:
        """For a message."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its lines, and where it begins."""

    language: str
    lines: tuple[str, ...]
    page: str
    line: int

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.lines) + "\n"


def pages(project: Path = PROJECT) -> list[Path]:
    """The documents that this looks at."""
    return [project / "README.md", project / "CONTRIBUTING.md", *sorted((project / "docs").glob("*.md"))]


def documented(project: Path = PROJECT) -> list[Command]:
    """Every command of every document, in the documents' order."""
    return [
        command
        for page in pages(project)
        for command in commands_of(page.read_text(encoding="utf-8"), str(page.relative_to(project)))
    ]


def python_blocks(project: Path = PROJECT) -> list[Block]:
    """Every Python example of every document."""
    found = []
    for page in pages(project):
        blocks = blocks_of(page.read_text(encoding="utf-8"), str(page.relative_to(project)))
        found += [block for block in blocks if block.language == "python"]
    return found


def commands_of(text: str, page: str) -> list[Command]:
    """The commands of one document: of its shell blocks and of its table of commands."""
    found = [
        Command(text=command, page=page, line=line)
        for block in blocks_of(text, page)
        if is_shell(block)
        for line, command in typed(block)
    ]
    found += [Command(text=usage, page=page, line=line, usage=True) for line, usage in usages(text)]
    return sorted(found, key=lambda command: command.line)


def blocks_of(text: str, page: str) -> list[Block]:
    """The fenced blocks of a document."""
    found: list[Block] = []
    inside: tuple[str, int, list[str]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if inside is None:
            inside = (fence[1], number, []) if fence else None
        elif fence and not fence[1]:
            language, began, lines = inside
            found.append(Block(language=language, lines=tuple(lines), page=page, line=began))
            inside = None
        else:
            inside[2].append(line)
    return found


def is_shell(block: Block) -> bool:
    """Whether a block holds commands; one without a language does when its first line calls a program we know."""
    if block.language:
        return block.language in SHELL
    return any(program_of(command) in PROGRAMS for _, command in list(typed(block))[:1])


def typed(block: Block) -> Iterator[tuple[int, str]]:
    """(Line of the document, command) of a shell block: continued lines are joined, a here-document left out."""
    lines = iter(enumerate(block.lines, block.line + 1))
    for number, line in lines:
        while line.endswith("\\"):
            line = line[:-1] + " " + next(lines, (0, ""))[1]
        until = re.search(r"<<-?\s*'?(\w+)'?", line)
        if until:
            for _, body in lines:
                if body.strip() == until[1]:
                    break
        for command in split_commands(line):
            yield number, command


def split_commands(line: str) -> Iterator[str]:
    """The commands of a line, on both sides of `&&`, without prompt, comment and superfluous spaces."""
    line = without_comment(line.removeprefix("$ ")).strip()
    if line.startswith("make "):
        line = re.split(r"\s{2,}", line)[0]  # what stands behind is what it does
    for command in re.split(r"\s&&\s", line):
        if command.strip():
            yield " ".join(command.split())


def without_comment(line: str) -> str:
    """A line up to its comment; a # within quotes is none."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


def program_of(command: str) -> str:
    """The program that a command calls, behind what it sets in the environment."""
    words = [word for word in command.split() if not ASSIGNMENT.match(word)]
    return words[0] if words else ""


def words_of(command: str) -> tuple[dict[str, str], list[str]]:
    """(What a command sets in the environment, its words); the brackets around what a usage leaves open are dropped."""
    words = shlex.split(command)
    assigned = {}
    while words and ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        assigned[name] = value
    plain = [word.removeprefix("[") for word in words]
    return assigned, [word if "[" in word else word.removesuffix("]") for word in plain]


def usages(text: str) -> Iterator[tuple[int, str]]:
    """(Line, usage) of the tables whose first column is called "command": a row may name several, the first in full."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            inside = False
        elif TABLE_HEAD.match(line):
            inside = True
        elif inside:
            first = re.split(r"(?<!\\)\|", line)[1].replace("\\|", "|")  # within a table | is written \|
            spans = re.findall(r"`([^`]+)`", first)
            for usage in in_full(spans):
                yield number, usage


def in_full(spans: Iterable[str]) -> Iterator[str]:
    """`luna model list`, `promote URI` -> `luna model list`, `luna model promote URI`; `a|b|c` is three."""
    group = ""
    for span in spans:
        whole = span if span.startswith("luna ") else f"{group} {span}".strip()
        words = whole.split()
        for place, word in enumerate(words):
            if re.fullmatch(r"[a-z]+(\|[a-z]+)+", word):
                yield from (" ".join([*words[:place], one, *words[place + 1 :]]) for one in word.split("|"))
                break
        else:
            yield " ".join(words)
        group = " ".join(words[:2])
