"""What does an independent checker say of a DICOM object that we wrote?"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

KNOWN = ("Segmentation", "Comprehensive3DSR")  # what dciodvfy calls the objects that we write


def complaints(path: Path) -> list[str]:
    """What dciodvfy (Debian: dicom3tools) calls an error; the test is skipped where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    said = subprocess.run(
        ["dciodvfy", "-new", str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    lines = (said.stdout + said.stderr).splitlines()
    assert any(line.strip() in KNOWN for line in lines), f"dciodvfy does not say what {path.name} is: {lines}"
    return [line for line in lines if line.startswith(("Error", "Abort"))]
