"""What must be kept so that a killed training goes on as if nothing had happened?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state whole or not at all; the last good one stays when this one fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as handle:
            torch.save(state, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The training state at `path`, without pickle, on the CPU; None when there is none."""
    if not path.exists():
        return None
    return torch.load(path, weights_only=True, map_location="cpu")
