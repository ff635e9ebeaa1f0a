"""What shall be done anew though it is finished, and how much of that is done already?

What is finished is kept, so a repeated run costs seconds. A retraining by design, or `--refresh STAGE`, wants some
stages done once more, but each only once: a *round* is one such wish. Its folder, `rounds/<id>/`, lists what was done
anew so far. A run that was cut short leaves its round open, and the next run with the same wish goes on in it; a run
that comes to its end closes it, so that the run after that begins a new one.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lungml.errors import LunaError
from lungml.files import locked, write_text_atomic
from lungml.home import Home
from tasks.caching import digest

Redo = Literal["prepare", "segmentation", "classification", "malignancy", "evaluate"]
REDOS: tuple[Redo, ...] = get_args(Redo)
TRAININGS: tuple[Redo, ...] = ("segmentation", "classification", "malignancy")
MARK = "round.json"


class RoundError(LunaError):
    """Something that cannot be done anew was asked for; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one run, or several that continue each other, do anew.

    Attributes:
        folder: what was done is listed in it; its name is the round's.
        stages: to be done anew.
    """

    folder: Path
    stages: frozenset[Redo]

    @property
    def id(self) -> str:
        """Part of the key of what is made in this round and must not be taken for older work."""
        return self.folder.name

    def due(self, stage: Redo, what: str) -> bool:
        """Whether this is to be done, though it may be finished: not if this round did it already.

        A round that is closed did everything: another run was in it too and came to its end, and what it made may be
        in use by now.
        """
        return stage in self.stages and (self.folder / MARK).exists() and not self._done(stage, what).exists()

    def done(self, stage: Redo, what: str) -> None:
        """Remember that it is done; not where another run closed the round meanwhile."""
        if stage in self.stages and (self.folder / MARK).exists():
            with suppress(FileNotFoundError):  # it is being closed at this very moment
                self._done(stage, what).parent.mkdir(parents=True, exist_ok=True)
                self._done(stage, what).touch()

    def close(self) -> None:
        """Forget the round: whoever has the same wish again begins anew."""
        with locked(self.folder.parent / "open"):
            (self.folder / MARK).unlink(missing_ok=True)  # first: without it nobody goes on in what is half deleted
            shutil.rmtree(self.folder, ignore_errors=True)

    def _done(self, stage: Redo, what: str) -> Path:
        return self.folder / stage / digest(what)


def parse_stages(names: Iterable[str]) -> tuple[Redo, ...]:
    """Names of stages, in the order of the pipeline, each once.

    Raises:
        RoundError: there is no such stage.
    """
    wanted = set(names)
    unknown = sorted(wanted - set(REDOS))
    if unknown:
        raise RoundError(f"there is no stage {unknown[0]!r} to refresh; choose one of {', '.join(REDOS)}")
    return tuple(stage for stage in REDOS if stage in wanted)


def open_round(home: Home, stages: Iterable[str], wish: Mapping[str, Any]) -> Round | None:
    """The open round of this wish, or a new one; None where nothing shall be done anew.

    Args:
        home: keeps the rounds.
        stages: to be done anew.
        wish: the parameters of the run: another wish is another round.

    Raises:
        RoundError: there is no such stage.
    """
    chosen = parse_stages(stages)
    if not chosen:
        return None
    asked = digest([list(chosen), {name: str(value) for name, value in wish.items()}])
    with locked(home.rounds / "open"):
        for mark in sorted(home.rounds.glob(f"*/{MARK}")):
            if _asked(mark) == asked:
                return Round(folder=mark.parent, stages=frozenset(chosen))
        folder = home.rounds / uuid.uuid4().hex[:12]
        write_text_atomic(folder / MARK, json.dumps({"asked": asked, "stages": list(chosen)}))
        return Round(folder=folder, stages=frozenset(chosen))


def with_trainings(fresh: bool, refresh: Iterable[str]) -> tuple[Redo, ...]:
    """The stages to do anew: those named, and all trainings where `fresh` says so."""
    return parse_stages([*refresh, *(cast(tuple[str, ...], TRAININGS) if fresh else ())])


def _asked(mark: Path) -> str | None:
    try:
        return str(json.loads(mark.read_text())["asked"])
    except (OSError, ValueError, TypeError, KeyError):  # half gone, or not ours: no round to go on in
        return None
