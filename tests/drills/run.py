"""Does a pipeline come through what real life does to it? `make drills` disturbs one and writes docs/drills.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lungml.files import try_lock, write_text_atomic
from tests.drills.page import Result, Step, page, verdict_of

if TYPE_CHECKING:
    from tests.drills.catalogue import Drill
    from tests.drills.scene import Scene

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "drills.md"


def play(drill: Drill, scene: Scene, say: Callable[[str], object], commit: str = "") -> Result:
    """Run one drill to its end, or to the first thing that goes wrong."""
    from tests.drills.programs import CannotRun, DrillError

    steps: list[Step] = []
    began = before = time.monotonic()
    blank = Result(name=drill.name, title=drill.title, about=drill.about, verdict="not run")
    try:
        for step in drill.play(scene):
            steps.append(replace(step, seconds=time.monotonic() - before))
            before = time.monotonic()
            say(f"    {steps[-1].seconds:4.0f} s  {step.did}: {step.saw}")
            for problem in step.problems:
                say(f"            WRONG: {problem}")
    except CannotRun as reason:
        return replace(blank, why=str(reason))
    except DrillError as error:
        problem = " ".join(str(error).split())
        say(f"            WRONG: {problem}")
        seconds = time.monotonic() - before
        steps.append(Step(did="the next step", saw="the drill ended here", problems=(problem,), seconds=seconds))
    return replace(
        blank,
        verdict=verdict_of(steps),
        steps=tuple(steps),
        seconds=time.monotonic() - began,
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        commit=commit,
    )


def facts(seconds: float) -> dict[str, str]:
    """What the seconds on the page depend on."""
    import psutil
    import torch

    from tests.benchmarks.run import machine

    known = machine()
    return {
        "machine": f"{known['cpu']}, {known['cores']} cores, {psutil.virtual_memory().total / 1e9:.0f} GB",
        "software": f"{platform.system()}, Python {known['python']}, torch {torch.__version__}",
        "pipeline": f"nine scans of 40 x 96 x 96 voxels, the recipe `demo` cut to seconds; undisturbed {seconds:.0f} s",
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run drills, write the page after each, and return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="drills to run; all without any")
    parser.add_argument("--list", action="store_true", help="list the drills and end")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write the page (default docs/drills.md)")
    parser.add_argument(
        "--folder", type=Path, help="work here and keep it: another run there adds to its results (default: temporary)"
    )
    options = parser.parse_args(arguments)
    from tests.drills.catalogue import all_drills  # PyTorch is not needed to say --help

    drills = all_drills()
    if options.list:
        print("\n".join(f"{drill.name:20}{drill.title}" for drill in drills))
        return 0
    unknown = sorted(set(options.names) - {drill.name for drill in drills})
    if unknown:
        parser.error(f"no such drill: {', '.join(unknown)}; --list names them")
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="luna-drills-")))
        if not stack.enter_context(try_lock(folder / "drills")):
            parser.error(f"other drills play in {folder}; wait for them, or name another folder")
        chosen = [drill for drill in drills if not options.names or drill.name in options.names]
        return _run(chosen, drills, folder, options.page)


def _run(chosen: Sequence[Drill], drills: Sequence[Drill], folder: Path, file: Path) -> int:
    from tests.drills.programs import DrillError
    from tests.drills.scene import Scene

    scene, start = Scene(folder.absolute()), time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True)

    kept = folder / "results.json"
    results = {name: _result(held) for name, held in (json.loads(kept.read_text()) if kept.exists() else {}).items()}
    try:
        say("the undisturbed run")
        try:
            seconds = scene.make_ready().seconds
        except DrillError as error:
            say(f"no drill can be run: {' '.join(str(error).split())}")
            return 1
        for drill in chosen:
            say(drill.title)
            results[drill.name] = play(drill, scene, say, scene.commit)
            say(f"{drill.name}: {results[drill.name].verdict} {results[drill.name].why}")
            write_text_atomic(kept, json.dumps({name: asdict(one) for name, one in results.items()}, indent=1))
            blanks = [Result(name=d.name, title=d.title, about=d.about, verdict="not run") for d in drills]
            write_text_atomic(file, page([results.get(blank.name, blank) for blank in blanks], facts(seconds)))
    finally:
        scene.close()
    return int(any(results[drill.name].verdict == "failed" for drill in chosen))


def _result(held: dict[str, object]) -> Result:
    steps = [Step(**{**step, "problems": tuple(step["problems"])}) for step in held.pop("steps")]  # type: ignore[attr-defined]
    return Result(**held, steps=tuple(steps))  # type: ignore[arg-type]


if __name__ == "__main__":
    os.chdir(PROJECT)
    sys.exit(main())
