"""What must be kept so that a killed training goes on as if nothing had happened?"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lungml.errors import LunaError
from lungml.files import whole_file

log = logging.getLogger(__name__)

CHECKPOINT_VERSION = 2
LAST, BAD_BATCH = "last.pt", "bad-batch.pt"


class CheckpointError(LunaError):
    """A training state belongs to another training; the message is one line that names the difference."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """A training's states in one folder: the last one, and the weights of the best epoch it knows of.

    The best epoch's file bears its number and is named by the state: whatever moment a kill chooses, the last state
    finds the weights it speaks of.

    Attributes:
        folder: holds nothing else of these names; made when first written to.
        identity: what makes this training the one it is: settings, data, seed, as text.
        commit: of the code; kept for whoever looks, not compared.
    """

    folder: Path
    identity: Mapping[str, str]
    commit: str = ""

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state whole or not at all, then drop the best epochs that no state speaks of any more.

        Raises:
            OSError: when the disk is full; the last good state stays.
        """
        about = {"version": CHECKPOINT_VERSION, "identity": dict(self.identity), "commit": self.commit}
        _write(self.folder / LAST, {**about, **state})
        for file in self.folder.glob("best-*.pt"):
            if file != self._best(state["best_epoch"]):
                file.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The last state, on the CPU, without pickle; None when there is none, or it cannot be read.

        Raises:
            CheckpointError: when it belongs to another training.
        """
        path = self.folder / LAST
        state = _read(path)
        if state is None:
            return None
        if state.get("version") != CHECKPOINT_VERSION:
            log.warning("%s: of another version of luna; training begins anew", path)
            return None
        kept, now = state["identity"], dict(self.identity)
        different = [name for name in (*now, *(kept.keys() - now.keys())) if kept.get(name) != now.get(name)]
        if different:
            shown = "; ".join(f"{n} {kept.get(n, 'not set')}, not {now.get(n, 'not set')}" for n in different[:3])
            raise CheckpointError(
                f"{path}: belongs to another training, with {shown}"
                f"{f' and {len(different) - 3} more' if len(different) > 3 else ''}; delete it or name another folder"
            )
        if state["best_epoch"] and _read(self._best(state["best_epoch"])) is None:
            log.warning("%s: the best epoch's weights are gone; training begins anew", path)
            return None
        return state

    def save_best(self, epoch: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Keep an epoch's weights; the state that names the epoch is written after it."""
        _write(self._best(epoch), {"weights": dict(weights)})

    def load_best(self, epoch: int) -> dict[str, torch.Tensor]:
        """The weights of an epoch that a state names."""
        state = _read(self._best(epoch))
        if state is None:
            raise CheckpointError(f"{self._best(epoch)}: gone or damaged; delete {self.folder} to train anew")
        weights: dict[str, torch.Tensor] = state["weights"]
        return weights

    def close(self) -> None:
        """A finished training's states are never used again."""
        for file in (self.folder / LAST, *self.folder.glob("best-*.pt")):
            file.unlink(missing_ok=True)

    def keep_batch(self, batch: Mapping[str, Any]) -> Path:
        """Keep a batch for inspection; returns where."""
        path = self.folder / BAD_BATCH
        _write(path, dict(batch))
        return path

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.pt"


def _write(path: Path, state: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()  # PyTorch's own writer turns "no space left" into a RuntimeError that names no file
    torch.save(state, buffer)
    with whole_file(path) as handle:
        handle.write(buffer.getbuffer())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        return None
    except Exception as error:  # PyTorch's unpickler lets anything out: IndexError, struct.error, EOFError, ...
        log.warning("%s: damaged (%s); training begins anew", path, type(error).__name__)
        return None
    return state
