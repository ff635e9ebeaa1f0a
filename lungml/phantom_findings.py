"""Which nodules does a drawn chest have, and what in it looks like one?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lungml.phantom_anatomy import Chest
from lungml.phantom_canvas import EDGE_MM, Array, Canvas
from lungml.textures import TEXTURES, Texture

LOOK_ALIKE_MM = 5.0  # least distance of a look-alike's centre to the surface of any nodule
SUBSOLID_MM = 5.0  # a smaller haze is lost in thick slices; Fleischner's guidelines follow subsolid ones from 6 mm on
SPECK_MM = (1.6, 2.6)  # diameters; LUNA16 counts nodules from 3 mm on


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a nodule is like, wherever it lies.

    Attributes:
        diameter_mm: of the sphere of about equal volume, spicules left out.
        texture: what most of it is like.
        lobulation: relative amplitude of its bumps.
        spicules: how many.
        ratings: malignancy 1..5 of up to four readers; malignant when two or more say 4 or 5.
    """

    diameter_mm: float
    malignant: bool
    texture: Texture
    lobulation: float
    spicules: int
    ratings: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DrawnNodule(Traits):
    """A nodule as it was drawn; its centre in fractional voxels (index, row, col)."""

    center_irc: tuple[float, float, float]


def draw_traits(rng: np.random.Generator, malignant_share: float = 1 / 3) -> Traits:
    """Size, texture, shape and ratings of one nodule.

    Malignant ones are larger on average, lobulated or spiculated, with overlap: the diameter alone separates the two
    with an AUC of about 0.88, as it does in LUNA16's table (0.90).
    """
    malignant = bool(rng.random() < malignant_share)
    median_mm, spread = (12.5, 0.40) if malignant else (6.6, 0.38)
    diameter_mm = float(np.clip(np.exp(rng.normal(np.log(median_mm), spread)), 3.0, 30.0))
    texture = TEXTURES[int(rng.choice(len(TEXTURES), p=[0.6, 0.25, 0.15] if malignant else [0.72, 0.10, 0.18]))]
    if diameter_mm < SUBSOLID_MM:
        texture = "solid"
    odd = rng.random() < (0.8 if malignant else 0.12)
    lobulation = float(rng.uniform(0.14, 0.28) if odd else rng.uniform(0.0, 0.06))
    spicules = int(rng.integers(5, 13)) if odd and rng.random() < 0.6 else 0
    readers = int(rng.integers(2, 5)) if malignant else int(rng.integers(1, 5))
    while True:
        ratings = np.clip(np.rint(rng.normal(3.9 if malignant else 2.3, 0.9, readers)), 1, 5).astype(int)
        if (np.count_nonzero(ratings >= 4) >= 2) == malignant:
            break
    return Traits(
        diameter_mm=diameter_mm,
        malignant=malignant,
        texture=texture,
        lobulation=lobulation,
        spicules=spicules,
        ratings=tuple(ratings.tolist()),
    )


class Findings:
    """Puts nodules, specks and look-alikes into a chest, apart from each other."""

    def __init__(self, canvas: Canvas, chest: Chest) -> None:
        self.canvas, self.chest, self.rng = canvas, chest, canvas.rng
        self.centers: list[Array] = []  # of nodules and specks, mm
        self.radii: list[float] = []

    def nodules(self, fewest: int, most: int, malignant_share: float) -> tuple[DrawnNodule, ...]:
        """Draw the scan's nodules: free, beside a vessel, or on the pleura; one without a place is left out."""
        drawn = []
        for _ in range(int(self.rng.integers(fewest, most + 1))):
            traits = draw_traits(self.rng, malignant_share)
            center = self._nodule_place(traits.diameter_mm / 2)
            if center is None:
                continue
            self._paint_nodule(center, traits)
            self._take(center, traits.diameter_mm / 2)
            index, row, col = self.canvas.voxels(center).tolist()
            drawn.append(DrawnNodule(center_irc=(index, row, col), **vars(traits)))
        return tuple(drawn)

    def specks(self) -> Array:
        """Draw opacities under 3 mm, which LUNA16 lists as excluded; (n, 3) fractional voxels."""
        places = []
        for _ in range(int(self.rng.integers(1, 4))):
            center = self._free_place(2.0, LOOK_ALIKE_MM)
            if center is not None:
                radius = float(self.rng.uniform(*SPECK_MM)) / 2
                self.canvas.capsule(center, center, (radius, radius), -50.0, only_brighter=True)
                self._take(center, radius)
                places.append(center)
        return self.canvas.voxels(np.reshape(places, (-1, 3)))

    def look_alikes(self, count: int) -> Array:
        """Places that are no nodules: scars and lymph nodes drawn here, forks of vessels, vessels, pleura, and lung.

        Returns:
            (n, 3) fractional voxels, n <= count; each at least `LOOK_ALIKE_MM` away from every nodule and speck.
        """
        rng, size_mm = self.rng, self.canvas.size_mm
        places = self._scars(max(1, count // 14)) + self._lymph_nodes(max(1, count // 20))
        rest = max(0, count - len(places))
        thick = [piece for piece in self.chest.vessels if piece.radii[1] > 0.7]
        forks = [piece.end for piece in thick if piece.fork]
        stretches = [piece.end for piece in thick if not piece.fork]
        anywhere = rng.uniform(0, 1, (count * 40, 3)) * size_mm
        depths = self._depths(anywhere)
        for pool, wanted in (
            (forks, round(rest * 0.4)),
            (stretches, round(rest * 0.25)),
            (anywhere[(depths > 0) & (depths < 3)], round(rest * 0.2)),
            (anywhere[depths > 3], rest),
        ):
            points = np.reshape(pool, (-1, 3))
            points = rng.permutation(points + rng.normal(0, 0.5, points.shape))
            inside = ((points > 0) & (points < size_mm)).all(axis=1)
            places += list(points[inside & self._clear(points, LOOK_ALIKE_MM)][: min(wanted, count - len(places))])
        places = places[:count]
        return self.canvas.voxels(np.reshape(places, (-1, 3)))

    # ---------------------------------------------------------------- places
    def _take(self, center: Array, radius: float) -> None:
        self.centers.append(center)
        self.radii.append(radius)

    def _clear(self, points: Array, margin_mm: float) -> npt.NDArray[np.bool_]:
        """Which of (n, 3) points keep the margin to the surface of all that is taken."""
        if not self.centers:
            return np.ones(len(points), dtype=bool)
        distances = np.linalg.norm(points[:, None] - np.stack(self.centers), axis=-1)
        return np.asarray((distances > np.array(self.radii) + margin_mm).all(axis=1))

    def _depths(self, points: Array) -> npt.NDArray[np.float32]:
        return self.chest.depth_mm.at(self.canvas.voxels(points))

    def _free_place(self, depth_mm: float, margin_mm: float) -> Array | None:
        points = self.rng.uniform(0, 1, (400, 3)) * self.canvas.size_mm
        good = (self._depths(points) > depth_mm) & self._clear(points, margin_mm)
        return points[int(good.argmax())] if good.any() else None

    def _nodule_place(self, radius: float) -> Array | None:
        rng, size_mm = self.rng, self.canvas.size_mm
        kind = str(rng.choice(["free", "vessel", "pleura"], p=[0.5, 0.25, 0.25]))
        points = rng.uniform(0, 1, (4000, 3)) * size_mm
        depths = self._depths(points)
        whole = ((points > radius * 0.6) & (points < size_mm - radius * 0.6)).all(axis=1)
        usable = whole & self._clear(points, radius + 6)
        if kind == "vessel" and self.chest.vessels:
            pieces = [self.chest.vessels[int(n)] for n in rng.integers(len(self.chest.vessels), size=400)]
            away = rng.normal(0, 1, (400, 3))
            away *= (radius + 0.6 * np.array([p.radii[1] for p in pieces])[:, None]) / np.linalg.norm(
                away, axis=1, keepdims=True
            )
            beside = np.stack([piece.end for piece in pieces]) + away
            inner = ((beside > radius * 0.6) & (beside < size_mm - radius * 0.6)).all(axis=1)
            inner &= self._clear(beside, radius + 6) & (self._depths(beside) > radius + 1)
            if inner.any():
                return beside[int(inner.argmax())]
        touching = usable & (depths > radius * 0.45) & (depths < radius * 0.8) & (depths > 0.5)
        for good in (touching,) if kind == "pleura" else (usable & (depths > radius + 1.0), touching):
            if good.any():
                return points[int(good.argmax())]
        return None

    # ---------------------------------------------------------------- shapes
    def _paint_nodule(self, center: Array, traits: Traits) -> None:
        rng, radius = self.rng, traits.diameter_mm / 2
        reach = radius * (1.15 + 2 * traits.lobulation) + 2 * EDGE_MM
        found = self.canvas.box(center - reach, center + reach)
        if found is None:
            return
        box, axes = found
        stretch = rng.uniform(0.88, 1.12, 3)
        stretch /= np.prod(stretch) ** (1 / 3)
        parts = [(axis - c) / f for axis, c, f in zip(axes, center, stretch)]
        distance = np.sqrt(sum(p**2 for p in parts)) + 1e-6
        bumps = np.zeros_like(distance)
        for _ in range(6):
            heading = _heading(rng)
            bumps += np.clip(sum(p * a for p, a in zip(parts, heading)) / distance, 0, None) ** 6
        surface = radius * (1 + traits.lobulation * (bumps - bumps.mean()))

        def lay(outside_mm: Array, value: float) -> None:
            self.canvas.lay(box, outside_mm.astype(np.float32), value, only_brighter=True, edge_mm=EDGE_MM)

        lay(distance - surface, rng.uniform(-30, 80) if traits.texture == "solid" else rng.uniform(-660, -500))
        if traits.texture == "part-solid":
            lay(distance - surface * rng.uniform(0.45, 0.65), rng.uniform(-40, 50))
        if not traits.malignant and traits.texture == "solid" and rng.random() < 0.15:  # a calcified granuloma
            lay(distance - radius * 0.6, rng.uniform(250, 600))
        value = -450.0 if traits.texture == "ground-glass" else -60.0
        for _ in range(traits.spicules):
            heading = _heading(rng)
            start, end = center + heading * radius * 0.8, center + heading * radius * rng.uniform(1.35, 1.9)
            self.canvas.capsule(start, end, (0.9, 0.35), value, only_brighter=True)

    def _scars(self, count: int) -> list[Array]:
        """Thin plates and bands."""
        rng, places = self.rng, []
        for _ in range(count):
            center = self._free_place(3.0, 12.0)
            if center is None:
                continue
            u, v = np.linalg.qr(rng.normal(0, 1, (3, 2)))[0].T
            half, value = rng.uniform(3, 7), rng.uniform(-160, 0)
            for step in np.linspace(-1, 1, 2 + int(2 * half)):  # about 1 mm apart: a plate, not a comb
                a, b = (center + u * half * step + v * half * 0.6 * end for end in (-1, 1))
                self.canvas.capsule(a, b, (0.75, 0.75), value, only_brighter=True)
            places.append(center)
        return places

    def _lymph_nodes(self, count: int) -> list[Array]:
        """Ovals at the hila, in contact with the mediastinum."""
        rng, places = self.rng, []
        for _ in range(count):
            hilum = self.chest.hila[int(rng.integers(2))]
            around = hilum + rng.normal(0, 12 * self.chest.s + 2, (60, 3))
            depths = self._depths(around)
            good = (depths > 0.5) & (depths < 6) & self._clear(around, LOOK_ALIKE_MM + 4)
            if good.any():
                center, radius = around[int(good.argmax())], float(rng.uniform(2.0, 3.6))
                a, b = center - rng.normal(0, 1.5, 3), center + rng.normal(0, 1.5, 3)
                self.canvas.capsule(a, b, (radius, radius), rng.uniform(20, 60), only_brighter=True)
                places.append(center)
        return places


def _heading(rng: np.random.Generator) -> Array:
    heading = rng.normal(0, 1, 3)
    return np.asarray(heading / np.linalg.norm(heading))
