"""What the engineer's guide quotes is what the code says."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.docs.commands import PROJECT

GUIDE = (PROJECT / "docs" / "engineers-guide.md").read_text(encoding="utf-8")
SHORTEST = 8  # what is shorter may stand anywhere
VARIABLE = r"\.\.\.|\b[NM]\b|\b\d+(?:\.\d+)?%?|models:/luna/\d+"  # a number, a name: whatever a message fills in


def quoted() -> list[str]:
    """The messages in the first columns of the tables of what is said."""
    found, inside = [], False
    for line in GUIDE.splitlines():
        if line.startswith(("| the gate says", "| it says")):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside:
            found += [span for span in re.findall(r"`([^`]+)`", line.split("|")[1]) if " " in span]
    return found


@cache
def said() -> str:
    """All sources, strings that go on in the next line joined."""
    sources = [
        path.read_text(encoding="utf-8")
        for part in ("flows", "tasks", "lungml")
        for path in (PROJECT / part).rglob("*.py")
    ]
    return re.sub(r"""["']\s*\n\s*(?:\+ )?f?["']""", "", "\n".join(sources))


def parts(message: str) -> list[str]:
    """What of a message stands as it is in the code."""
    return [part.strip(" ;:,()") for part in re.split(VARIABLE, message) if len(part.strip(" ;:,()")) >= SHORTEST]


def test_there_are_messages_to_look_for() -> None:
    assert len(quoted()) > 20


@pytest.mark.parametrize("message", [one for one in quoted() if not one.startswith("luna ")])
def test_a_message_is_one_that_the_code_can_give(message: str) -> None:
    assert parts(message), f"{message!r} says too little to be found"
    for part in parts(message):
        # A file's problem and advice are put together with semicolons.
        for piece in re.split(r"[;:] ", part):
            assert piece in said() or len(piece) < SHORTEST, f"no source says {piece!r}"


def test_what_no_source_says_is_found() -> None:
    assert parts("N scans were eaten by ...") == ["scans were eaten by"]
    assert "scans were eaten by" not in said()
