"""Two boxes and a ball: where the ball comes to lie in the picture is known to the pixel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from lungml import rendering
from lungml.plots import ORANGE
from lungml.rendering import RenderingError, Scene, render

LOW, HIGH = np.array([-140.0, -80.0, 0.0]), np.array([140.0, 80.0, 200.0])


def scene() -> Scene:
    """Two lungs on a grid of 4 mm whose columns and rows run backwards, and a ball in the patient's left one."""
    lungs = np.zeros((50, 40, 70), dtype=np.bool_)
    lungs[8:42, 5:35, 5:30] = lungs[8:42, 5:35, 40:65] = True
    return Scene(
        lungs=lungs,
        to_xyz=np.array([[0, 0, -4.0, 138], [0, -4.0, 0, 78], [4.0, 0, 0, 2]]),
        centers_xyz=np.array([[80.0, 30.0, 120.0]]),
        diameters_mm=np.array([24.0]),
        colors=np.array([to_rgba(ORANGE)]),
        low_xyz=LOW,
        high_xyz=HIGH,
    )


def test_without_the_extra_the_command_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RenderingError, match=r"`pip install luna-pipeline\[volume\]`"):
        render(scene())


@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (-11, b"(0.1s) WARN| bad X server connection\n", "the renderer was ended by signal 11"),
        (1, b"Traceback\n  File x\nRuntimeError: no display\n\n", r"the renderer failed \(RuntimeError: no display\)"),
        (3, b"", r"the renderer failed \(3\)"),
    ],
)
def test_a_machine_that_cannot_draw_is_one_line(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: bytes, said: str
) -> None:
    tried = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        tried.append("DISPLAY" in env)
        return subprocess.CompletedProcess(command, code, b"", stderr)

    monkeypatch.setattr(rendering, "check_extra", lambda: None)
    monkeypatch.setattr(rendering.subprocess, "run", run)
    monkeypatch.setenv("DISPLAY", ":7")
    with pytest.raises(RenderingError, match=said) as refused:
        render(scene())
    assert "\n" not in str(refused.value)
    assert tried == [False, True]  # without the X server first, since one that does not answer ends VTK


def test_a_renderer_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Stands in for Python: it never draws.
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(rendering, "check_extra", lambda: None)
    monkeypatch.setattr(rendering.sys, "executable", str(hangs))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RenderingError, match=r"did not end within 0\.2 s"):
        render(scene(), timeout_s=0.2)


def test_importing_it_imports_neither_vtk_nor_pytorch() -> None:
    check = "import sys, lungml.rendering; sys.exit(any(n in sys.modules for n in ('pyvista', 'vtkmodules', 'torch')))"
    assert subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2]).returncode == 0


def drawn() -> list[np.ndarray]:
    """The views of the scene, drawn by VTK."""
    pytest.importorskip("pyvista", reason="PyVista is not installed: luna-pipeline[volume]")
    try:
        return render(scene())
    except RenderingError as error:
        if "signal" not in str(error):  # how VTK ends without OpenGL
            raise
        pytest.skip(f"this machine cannot draw in 3D: {error}")


@pytest.mark.slow
def test_a_ball_is_drawn_where_it_lies_and_twice_the_same() -> None:
    views, center, spans = drawn(), scene().centers_xyz[0], HIGH - LOW
    assert len(views) == 2
    for view, (width, height), axis in zip(views, scene().sizes(), (0, 1)):
        assert view.shape == (height, width, 3)
        # The patient's left is on the right from the front, the back on the right from the left.
        across, down = (center[axis] - LOW[axis]) / spans[axis] * width, (HIGH[2] - center[2]) / spans[2] * height
        # Orange has much more red than blue; the lungs and the ground have not.
        rows, cols = np.nonzero(view[:, :, 0].astype(int) - view[:, :, 2] > 60)
        assert (cols.mean(), rows.mean()) == pytest.approx((across, down), abs=4)
        assert np.ptp(cols) == pytest.approx(24 / spans[axis] * width, abs=6)
        assert view[2, 2].tolist() == [255, 255, 255]
        assert view[height // 2, round(0.2 * width)].tolist() != [255, 255, 255]  # lung
    assert all(np.array_equal(one, two) for one, two in zip(views, drawn()))
