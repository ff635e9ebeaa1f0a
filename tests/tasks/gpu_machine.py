"""A machine whose GPUs are made up by a script in the place of nvidia-smi."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ONE = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-0)\n"
TWO = ONE + "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-1)\n"


def put_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *, listing: str = "", script: str = "") -> None:
    """Let nvidia-smi list some GPUs, or be another script."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\n" + (script or f"cat <<'E'\n{listing}E") + "\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
