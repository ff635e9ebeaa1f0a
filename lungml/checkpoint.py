"""What must be kept so that a killed training goes on as if nothing had happened?"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from lungml.files import whole_file


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state whole or not at all; the last good one stays when this one fails."""
    buffer = io.BytesIO()  # PyTorch's own writer turns "no space left" into a RuntimeError that names no file
    torch.save(state, buffer)
    with whole_file(path) as handle:
        handle.write(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The training state at `path`, without pickle, on the CPU; None when there is none."""
    if not path.exists():
        return None
    return torch.load(path, weights_only=True, map_location="cpu")
