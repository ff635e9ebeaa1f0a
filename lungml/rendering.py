"""How does a scene of lungs and balls look? Drawn by VTK, in a process of its own and without a window.

VTK ends a process when a machine cannot draw, and fills stderr with its own words: the child, `python -m
lungml.rendering SCENE VIEWS`, may do so, and the caller gets one line. No PyTorch is imported here: the child starts
the sooner.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lungml.errors import LunaError, one_line

EXTRA = "luna-pipeline[volume]"
RENDER_TIMEOUT_S = 180.0
LUNG_COLOR, LUNG_OPACITY = "#8FA9BF", 0.24
VIEW_PIXELS = 1000  # the longer side of a view
VIEWS: dict[str, tuple[int, tuple[str, str, str, str]]] = {  # axis across; letters left, right, top, bottom
    "from the front": (0, ("R", "L", "S", "I")),
    "from the left": (1, ("A", "P", "S", "I")),
}


class RenderingError(LunaError):
    """No picture in three dimensions can be had here; the message is one line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What is drawn, in patient axes (LPS).

    Attributes:
        lungs: (i, r, c) bool, on a coarse grid.
        to_xyz: (3, 4) float64, takes (i, r, c, 1) of that grid to mm.
        centers_xyz: (n, 3) float64 mm.
        diameters_mm: (n) float64.
        colors: (n, 4) float64, red, green, blue and opacity in [0, 1].
        low_xyz, high_xyz: (3,) float64 mm, the box that the views show.
    """

    lungs: npt.NDArray[np.bool_]
    to_xyz: npt.NDArray[np.float64]
    centers_xyz: npt.NDArray[np.float64]
    diameters_mm: npt.NDArray[np.float64]
    colors: npt.NDArray[np.float64]
    low_xyz: npt.NDArray[np.float64]
    high_xyz: npt.NDArray[np.float64]

    def sizes(self) -> list[tuple[int, int]]:
        """Of each view: width and height in pixels, with one scale for both."""
        spans = self.high_xyz - self.low_xyz
        scale = VIEW_PIXELS / float(spans.max())
        return [(math.ceil(scale * spans[axis]), math.ceil(scale * spans[2])) for axis, _ in VIEWS.values()]


def check_extra() -> None:
    """See that PyVista is there; it is not imported.

    Raises:
        RenderingError: it is not.
    """
    if importlib.util.find_spec("pyvista") is None:
        raise RenderingError(
            f"a picture in 3D needs PyVista: `pip install {EXTRA}`; the other figures need nothing more"
        )


def render(scene: Scene, timeout_s: float = RENDER_TIMEOUT_S) -> list[npt.NDArray[np.uint8]]:
    """The views of a scene, each (height, width, 3) uint8, drawn by a child process without a window.

    Raises:
        RenderingError: PyVista is not installed, or this machine cannot draw.
    """
    check_extra()
    # An X server that does not answer ends VTK, and a machine that has one mostly draws without it as well.
    bare = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    surroundings = [bare] if len(bare) == len(os.environ) else [bare, dict(os.environ)]
    with tempfile.TemporaryDirectory(prefix="luna-volume-") as folder:
        given, drawn = Path(folder) / "scene.npz", Path(folder) / "views.npz"
        _save(scene, given)
        for environment in surroundings:
            problem = _draw_in_child(given, drawn, environment, timeout_s)
            if not problem:
                return _load_views(drawn)
    raise RenderingError(
        f"no picture in 3D: {problem}; on a machine without OpenGL install Mesa (libegl1, libgl1-mesa-dri)"
    )


def _save(scene: Scene, path: Path) -> None:
    with path.open("wb") as handle:
        np.savez(handle, **{name: getattr(scene, name) for name in Scene.__dataclass_fields__})


def _load_views(path: Path) -> list[npt.NDArray[np.uint8]]:
    with np.load(path, allow_pickle=False) as kept:
        return [kept[f"view{number}"] for number in range(len(VIEWS))]


def _draw_in_child(given: Path, drawn: Path, environment: Mapping[str, str], timeout_s: float) -> str:
    """Draw a scene; what went wrong, or ""."""
    paths = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    told = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "lungml.rendering", str(given), str(drawn)]
    try:
        done = subprocess.run(
            command, env=told, cwd=given.parent, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"the renderer did not end within {timeout_s:g} s"
    if done.returncode == 0 and drawn.is_file():
        return ""
    if done.returncode < 0:
        return f"the renderer was ended by signal {-done.returncode}"
    lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return f"the renderer failed ({one_line(lines[-1])[:200]})" if lines else f"the renderer failed ({done.returncode})"


def _draw(scene: Scene) -> list[npt.NDArray[np.uint8]]:
    """Draw the views here: only for the child, since VTK may end the process."""
    import pyvista as pv

    views = []
    lungs = _surface(scene)
    middle = (scene.low_xyz + scene.high_xyz) / 2
    far = 2 * float((scene.high_xyz - scene.low_xyz).max())
    for (axis, _), size in zip(VIEWS.values(), scene.sizes()):
        plotter: Any = pv.Plotter(off_screen=True, window_size=list(size))
        plotter.set_background("white")
        if lungs is not None:
            plotter.add_mesh(
                lungs, color=LUNG_COLOR, opacity=LUNG_OPACITY, smooth_shading=True, specular=0.2, specular_power=12
            )
        for center, diameter, color in zip(scene.centers_xyz, scene.diameters_mm, scene.colors):
            ball = pv.Sphere(radius=diameter / 2, center=center, theta_resolution=48, phi_resolution=48)
            plotter.add_mesh(
                ball,
                color=tuple(color[:3]),
                opacity=float(color[3]),
                smooth_shading=True,
                ambient=0.4,
                diffuse=0.7,
                specular=0.2,
                specular_power=20,
            )
        # From the front is from -y, from the left from +x; the head is up.
        eye = middle + far * np.array([(0, -1, 0), (1, 0, 0)][axis])
        plotter.camera_position = [tuple(eye), tuple(middle), (0, 0, 1)]
        plotter.enable_parallel_projection()
        plotter.camera.parallel_scale = float(scene.high_xyz[2] - scene.low_xyz[2]) / 2
        plotter.camera.clipping_range = (0.1 * far, 3 * far)
        plotter.enable_depth_peeling(8)
        plotter.enable_anti_aliasing("ssaa")
        views.append(np.ascontiguousarray(plotter.screenshot(None, return_img=True)[:, :, :3]))
        plotter.close()
    return views


def _surface(scene: Scene) -> Any:
    """The lungs' surface in mm (LPS), smoothed; None without lungs."""
    import pyvista as pv

    if not scene.lungs.any():
        return None
    solid = ndimage.gaussian_filter(np.pad(scene.lungs, 2).astype(np.float32), 0.8)
    # VTK's first axis runs fastest, as ours does last.
    image: Any = pv.ImageData(dimensions=solid.shape[::-1], origin=(-2, -2, -2))
    image.point_data["lung"] = solid.ravel()
    surface = image.contour([0.5], scalars="lung")
    if not surface.n_points:
        return None
    surface = surface.smooth_taubin(n_iter=30, pass_band=0.05)
    points_irc = np.asarray(surface.points, dtype=np.float64)[:, ::-1]
    surface.points = points_irc @ scene.to_xyz[:, :3].T + scene.to_xyz[:, 3]
    return surface.compute_normals(auto_orient_normals=True, consistent_normals=True)


def main(arguments: Sequence[str]) -> None:
    """The child: draws the scene of one file into another."""
    given, drawn = map(Path, arguments)
    with np.load(given, allow_pickle=False) as kept:
        scene = Scene(**{name: kept[name] for name in Scene.__dataclass_fields__})
    views = _draw(scene)
    named: dict[str, Any] = {f"view{number}": view for number, view in enumerate(views)}
    with drawn.open("wb") as handle:
        np.savez(handle, **named)


if __name__ == "__main__":
    main(sys.argv[1:])
