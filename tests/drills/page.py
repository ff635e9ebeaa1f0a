"""How are the drills of one run told on a page?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "failed", "not run"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One disturbance, or one look at what it did.

    Attributes:
        did: to the pipeline.
        saw: what it answered.
        problems: what should not have been, a line each.
        seconds: that the step took.
    """

    did: str
    saw: str
    problems: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """A drill that was run, or was not.

    Attributes:
        name: that the runner takes.
        title: what is disturbed.
        about: what it shows, in a sentence or two.
        verdict: failed as soon as one step has a problem.
        why: it was not run, else empty.
        steps: in order.
        seconds: in all.
        date: UTC.
        commit: of the code.
    """

    name: str
    title: str
    about: str
    verdict: Verdict
    why: str = ""
    steps: tuple[Step, ...] = ()
    seconds: float = 0.0
    date: str = ""
    commit: str = ""


def verdict_of(steps: Sequence[Step]) -> Verdict:
    """Passed where no step has a problem; nothing done is nothing shown."""
    if not steps:
        return "not run"
    return "failed" if any(step.problems for step in steps) else "passed"


def page(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """The page, Markdown, without a folder of the machine it ran on."""
    counts = [f"{sum(r.verdict == v for r in results)} {v}" for v in ("passed", "failed", "not run")]
    lines = [
        "# Failure drills",
        "",
        "What happens to a pipeline that is killed, starved, locked out or lied to. Written by `make drills`: a real,",
        "tiny pipeline is disturbed and run again, and must come to what the undisturbed run came to: weights byte by",
        "byte, every metric of every epoch, thresholds, score cards and findings. Work that was finished must be found",
        "so (`Cached`), no MLflow run may stay open, no half-written file stay behind.",
        "",
        *[f"* {name}: {value}" for name, value in facts.items()],
        f"* drills: {', '.join(counts)}; {sum(r.seconds for r in results):.0f} s in all",
        "",
        "| drill | what is disturbed | verdict | seconds | date | commit |",
        "| --- | --- | --- | ---: | --- | --- |",
    ]
    for result in results:
        seconds = f"{result.seconds:.0f}" if result.verdict != "not run" else ""
        shown = result.verdict if result.verdict == "passed" else f"**{result.verdict}**"
        lines.append(
            f"| [{result.name}](#{result.name}) | {_cell(result.title)} | {shown} | {seconds} | {result.date} "
            f"| {result.commit} |"
        )
    for result in results:
        lines += ["", f"## {result.name}", "", result.about, ""]
        if result.verdict == "not run":
            lines.append(f"Not run{f': {result.why}' if result.why else ' this time'}.")
            continue
        lines += ["| done | seen | seconds |", "| --- | --- | ---: |"]
        for step in result.steps:
            wrong = "".join(f"<br>**{_cell(problem)}**" for problem in step.problems)
            lines.append(f"| {_cell(step.did)} | {_cell(step.saw)}{wrong} | {step.seconds:.0f} |")
    return without_folders("\n".join(lines)) + "\n"


def without_folders(text: str) -> str:
    """The text with absolute paths cut to their last name: where a drill ran is nobody's business."""
    return re.sub(r"(?<![\w:/.<)])(?:\w+://(?=/))?/+(?:[^\s/:;,|'\"]+/)+", "", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
