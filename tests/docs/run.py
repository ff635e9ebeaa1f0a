"""Do the documents' commands do what they say? `make docs` runs them, one after the other, on tiny scans."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.docs.commands import python_blocks
from tests.docs.plan import STEPS, Step, fill, python_command
from tests.docs.stage import Place
from tests.drills.programs import DrillError, Program, end_all

LIMIT_S = 900.0
READY_S = 240.0
SHOWN_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended: `problem` is empty where it went well."""

    step: Step
    seconds: float
    problem: str = ""


class Runner:
    """Runs steps in one place and keeps what runs in the background.

    Args:
        place: where.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.behind: list[Program] = []
        self._count = 0

    def run(self, step: Step) -> Outcome:
        """Run a step to its end, or to the moment it is ready."""
        began = time.monotonic()
        try:
            problem = self._run(step)
        except DrillError as error:
            problem = str(error)
        return Outcome(step=step, seconds=time.monotonic() - began, problem=problem)

    def close(self) -> list[str]:
        """End what runs in the background as Ctrl-C does, and whatever is left; what did not end well, a line each."""
        problems = []
        for program in reversed(self.behind):
            if not program.ended:
                program.process.send_signal(signal.SIGINT)
            try:
                program.succeed(120.0)
            except DrillError as error:
                problems.append(str(error))
        end_all(self.place.mark)
        return problems

    def _run(self, step: Step) -> str:
        if step.before:
            step.before(self.place.known)
        program = self._start(step)
        if step.ready:
            self.behind.append(program)
            program.until(lambda: step.ready in program.text, f"ready ({step.ready!r})", READY_S)
            return ""
        status = program.finish(LIMIT_S)
        said = program.text
        if status != step.status:
            return f"ended with status {status}\n" + first_lines(said)
        says = fill(step.says, self.place.known)
        if says not in said:
            return f"does not say {says!r}\n" + first_lines(said)
        for name, pattern in step.keeps.items():
            found = re.search(pattern, said)
            if not found:
                return f"says nothing like {pattern!r}\n" + first_lines(said)
            self.place.keep({name: found[1]})
        return ""

    def _start(self, step: Step) -> Program:
        self._count += 1
        if step.command.startswith("python block "):
            assigned: dict[str, str] = {}
            words = [sys.executable, "-c", self._python(step)]
        else:
            assigned, words = self.place.words(step)
            if "{" in " ".join(words) and re.search(r"\{[a-z_]+\}", " ".join(words)):
                raise DrillError(f"not known yet: {' '.join(words)}; run the steps before it, too")
        log = self.place.folder / "logs" / f"{self._count:02}.log"
        log.parent.mkdir(exist_ok=True)
        log.with_suffix(".command").write_text(" ".join([*(f"{k}={v}" for k, v in assigned.items()), *words]) + "\n")
        return Program(step.command, words, self.place.env(**assigned), self.place.code, log)

    def _python(self, step: Step) -> str:
        for block, command in named_blocks():
            if command == step.command:
                text = block
                for word, value in step.places.items():
                    text = text.replace(word, fill(value, self.place.known))
                return text
        raise DrillError(f"no document has it: {step.command}")


def named_blocks() -> list[tuple[str, str]]:
    """(Text, name) of every Python example."""
    counts: dict[str, int] = {}
    found = []
    for block in python_blocks():
        counts[block.page] = counts.get(block.page, 0) + 1
        found.append((block.text, python_command(block.page, counts[block.page])))
    return found


def first_lines(said: str) -> str:
    """The first lines of an output that say anything, indented."""
    lines = [line for line in said.splitlines() if line.strip()]
    cut = [*lines[:SHOWN_LINES], *(["..."] if len(lines) > SHOWN_LINES else [])]
    return "\n".join(f"      {line[:160]}" for line in cut)


def play(steps: Sequence[Step], place: Place, say: Callable[[str], object]) -> list[Outcome]:
    """Run steps one after the other and say of each how it went."""
    runner = Runner(place)
    outcomes = []
    try:
        for step in steps:
            outcomes.append(runner.run(step))
            say(line_of(outcomes[-1]))
    finally:
        for problem in runner.close():
            say(f"failed at its end: {problem}")
            outcomes.append(Outcome(step=steps[0], seconds=0.0, problem=problem))
    return outcomes


def line_of(outcome: Outcome) -> str:
    """`ok   12.3 s  luna status`, and below it what went wrong."""
    verdict = "failed" if outcome.problem else "ok"
    problem = f"\n    {outcome.problem}" if outcome.problem else ""
    return f"{verdict:6} {outcome.seconds:6.1f} s  {outcome.step.command}{problem}"


def chosen(steps: Sequence[Step], parts: Sequence[str]) -> list[Step]:
    """The steps whose command holds one of some texts; all where there are none."""
    return [step for step in steps if not parts or any(part in step.command for part in parts)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the documents' commands; 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs.run", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="TEXT", help="only commands that hold this text")
    parser.add_argument("--list", action="store_true", help="list the commands and end")
    parser.add_argument("--folder", type=Path, help="work here and keep it, so that more can be run there later")
    options = parser.parse_args(arguments)
    steps = chosen(STEPS, options.parts)
    if options.list:
        print("\n".join(step.command for step in steps))
        return 0
    if not steps:
        parser.error(f"no command holds {' or '.join(options.parts)}; --list names them")
    began = time.monotonic()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="luna-docs-")))
        place = Place(folder.absolute())
        place.make_ready()
        outcomes = play(steps, place, lambda line: print(line, flush=True))
        failed = sum(bool(outcome.problem) for outcome in outcomes)
    print(f"{len(steps)} commands of the documents, {failed} failed, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    # As an exit, so that what was started here is ended with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
