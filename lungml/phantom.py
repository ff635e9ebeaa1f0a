"""What would LUNA16 look like if it were drawn instead of scanned?

Chest-like synthetic CTs in the challenge's own layout, for demonstrations and tests. They are no anatomy: a body with
lungs, ribs, spine, airways and a branching vessel tree, nodules with a truth that is known exactly, and look-alikes.
Anatomy is drawn in voxel axes, in mm; direction and origin enter only the header, and the tables through `Grid`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lungml.errors import LunaError
from lungml.files import write_csv_atomic, write_text_atomic
from lungml.geometry import Grid, irc_to_xyz

PHANTOM_VERSION = 1  # raise it when any voxel or row changes
UID_ROOT = "1.2.826.0.1.3680043.8.498"  # a root for made-up uids: no patient has one
SUBSETS = 10
TABLE_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
MALIGNANCY_COLUMNS = (
    *TABLE_COLUMNS, "mal_bool", "mal_details",
    "bboxLowX", "bboxLowY", "bboxLowZ", "bboxHighX", "bboxHighY", "bboxHighZ", "len_mal_details",
)  # fmt: skip

AIR, LUNG, FAT, MUSCLE, BLOOD, BONE = -1000.0, -860.0, -100.0, 45.0, 40.0, 480.0  # HU
ADULT_WIDTH_MM = 360.0  # of a full field of view; a smaller one holds a smaller body with nodules of full size
EDGE_MM = 0.9  # over which an edge goes from one tissue to the next


class PhantomError(LunaError):
    """The folder holds something else, or the settings cannot be drawn; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What the scans are like.

    Attributes:
        size_irc: slices, rows, columns.
        nodules: fewest and most nodules of a scan.
        negatives_per_nodule: look-alikes among the candidates, LUNA16's order of magnitude being far higher.
        malignant_share: of the nodules.
        noise_hu: least and most standard deviation of the noise.
        slice_mm: least and most slice spacing.
        pixel_mm: least and most in-plane spacing.
    """

    size_irc: tuple[int, int, int] = (130, 512, 512)
    nodules: tuple[int, int] = (0, 4)
    negatives_per_nodule: int = 30
    malignant_share: float = 1 / 3
    noise_hu: tuple[float, float] = (12.0, 32.0)
    slice_mm: tuple[float, float] = (1.0, 2.5)
    pixel_mm: tuple[float, float] = (0.6, 0.9)

    def __post_init__(self) -> None:
        if min(self.size_irc) < 32 or max(self.size_irc) > 1024:
            raise PhantomError(f"size {self.size_irc} is not between 32 and 1024 voxels along each axis")


@dataclass(frozen=True, kw_only=True)
class DrawnNodule:
    """A nodule as it was drawn.

    Attributes:
        center_irc: fractional voxels.
        diameter_mm: of the sphere of equal volume, spicules left out.
        texture: solid, part-solid or ground-glass.
        lobulation: relative amplitude of its bumps.
        spicules: how many.
        ratings: malignancy 1..5 of up to four readers; malignant when two or more say 4 or 5.
    """

    center_irc: tuple[float, float, float]
    diameter_mm: float
    malignant: bool
    texture: str
    lobulation: float
    spicules: int
    ratings: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One drawn scan with its truth; centres are fractional voxels."""

    series_uid: str
    hu: npt.NDArray[np.int16]
    grid: Grid
    nodules: tuple[DrawnNodule, ...]
    negatives_irc: npt.NDArray[np.float64]
    excluded_irc: npt.NDArray[np.float64]
    padding_hu: int = 0


def write_phantoms(
    out: Path,
    *,
    scans: int,
    seed: int,
    settings: PhantomSettings | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a synthetic LUNA16 tree: `subset0..9/<uid>.mhd + .raw` and the five tables.

    The same seed and settings give the same bytes, whatever the number of workers. `phantom.json` is written last:
    a folder without it is drawn anew, one with it is left as it is.

    Args:
        out: the folder.
        scans: how many.
        seed: decides everything.
        settings: what they are like.
        workers: processes; one per core when None.
        progress: called with (scans written, scans in all).

    Raises:
        PhantomError: when the folder holds phantoms of other settings, or files of something else.
        OSError: when the disk is full; no `phantom.json` lies there then.
    """
    settings = settings or PhantomSettings()
    if scans < 1:
        raise PhantomError(f"{scans} scans were asked for; ask for one or more")
    made_of = {"version": PHANTOM_VERSION, "scans": scans, "seed": seed, "settings": asdict(settings)}
    made_of = json.loads(json.dumps(made_of))
    manifest = out / "phantom.json"
    if manifest.exists():
        if json.loads(manifest.read_text()) == made_of:
            return
        raise PhantomError(f"{out}: holds synthetic scans of other settings; choose another folder or delete it")
    if (out / "annotations.csv").exists() and not (out / "phantom.started").exists():
        raise PhantomError(f"{out}: holds a data set that was not drawn here; choose another folder")
    write_text_atomic(out / "phantom.started", json.dumps(made_of))
    for subset in range(SUBSETS):
        (out / f"subset{subset}").mkdir(parents=True, exist_ok=True)
    uids = [_series_uid(seed, number) for number in range(scans)]
    rows: dict[int, dict[str, list[tuple[Any, ...]]]] = {}
    processes = min(workers or os.cpu_count() or 1, scans)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        drawn = {
            pool.submit(_write_scan, out / f"subset{n % SUBSETS}", uid, seed, n, settings): n
            for n, uid in enumerate(uids)
        }
        for done, future in enumerate(as_completed(drawn), start=1):
            rows[drawn[future]] = future.result()
            if progress:
                progress(done, scans)
    tables = {name: [row for n in range(scans) for row in rows[n][name]] for name in rows[0]}
    write_csv_atomic(out / "annotations.csv", TABLE_COLUMNS, tables["annotations"])
    write_csv_atomic(out / "candidates.csv", (*TABLE_COLUMNS[:4], "class"), tables["candidates"])
    write_csv_atomic(out / "annotations_excluded.csv", TABLE_COLUMNS, tables["excluded"])
    write_csv_atomic(out / "annotations_with_malignancy.csv", MALIGNANCY_COLUMNS, tables["malignancy"])
    write_text_atomic(out / "seriesuids.csv", "".join(f"{uid}\n" for uid in sorted(uids)))
    write_text_atomic(manifest, json.dumps(made_of, indent=1))
    (out / "phantom.started").unlink()


def draw_phantom(series_uid: str, rng: np.random.Generator, settings: PhantomSettings) -> Phantom:
    """Draw one scan."""
    canvas = _Canvas(rng, settings)
    canvas.body()
    canvas.lungs()
    canvas.airways()
    canvas.vessels()
    nodules = canvas.nodules()
    negatives = canvas.look_alikes(settings.negatives_per_nodule * max(len(nodules), 1))
    excluded = canvas.specks()
    hu, padding = canvas.scan()
    grid = Grid(
        shape_irc=settings.size_irc,
        spacing_xyz=(canvas.spacing[2], canvas.spacing[1], canvas.spacing[0]),
        origin_xyz=tuple(round(float(v), 4) for v in rng.uniform((-220, -220, -400), (-120, -120, 100))),  # type: ignore[arg-type]
        direction=_direction(rng),
    )
    return Phantom(
        series_uid=series_uid,
        hu=hu,
        grid=grid,
        nodules=nodules,
        negatives_irc=negatives,
        excluded_irc=excluded,
        padding_hu=padding,
    )


def draw_nodule_traits(rng: np.random.Generator, malignant_share: float = 1 / 3) -> dict[str, Any]:
    """Size, texture, shape and ratings of one nodule.

    Malignant ones are larger on average, lobulated or spiculated, with overlap: the diameter alone separates the two
    with an AUC of about 0.88, as it does in LUNA16's table (0.90).
    """
    malignant = bool(rng.random() < malignant_share)
    median_mm, spread = (12.5, 0.40) if malignant else (6.6, 0.38)
    diameter_mm = float(np.clip(np.exp(rng.normal(np.log(median_mm), spread)), 3.0, 30.0))
    texture = str(
        rng.choice(["solid", "part-solid", "ground-glass"], p=[0.6, 0.25, 0.15] if malignant else [0.76, 0.08, 0.16])
    )
    odd = rng.random() < (0.8 if malignant else 0.12)
    lobulation = float(rng.uniform(0.14, 0.28) if odd else rng.uniform(0.0, 0.06))
    spicules = int(rng.integers(5, 13)) if odd and rng.random() < 0.6 else 0
    readers = int(rng.integers(2, 5)) if malignant else int(rng.integers(1, 5))
    while True:
        ratings = np.clip(np.rint(rng.normal(3.9 if malignant else 2.3, 0.9, readers)), 1, 5).astype(int)
        if (np.count_nonzero(ratings >= 4) >= 2) == malignant:
            break
    return {
        "malignant": malignant,
        "diameter_mm": diameter_mm,
        "texture": texture,
        "lobulation": lobulation,
        "spicules": spicules,
        "ratings": tuple(ratings.tolist()),
    }


class _Canvas:
    """A volume under the brush: float32 HU, positions in mm from the volume's corner, axes (index, row, col)."""

    def __init__(self, rng: np.random.Generator, settings: PhantomSettings) -> None:
        self.rng, self.settings = rng, settings
        pixel = round(float(rng.uniform(*settings.pixel_mm)), 6)
        slice_mm = float(rng.choice(np.arange(settings.slice_mm[0], settings.slice_mm[1] + 0.01, 0.25)))
        self.spacing = np.array([slice_mm, pixel, pixel])
        self.shape = np.array(settings.size_irc)
        self.size_mm = self.shape * self.spacing
        self.scale = float(min(self.size_mm[2] / ADULT_WIDTH_MM, 1.0))
        self.axes = [((np.arange(n) + 0.5) * mm).astype(np.float32) for n, mm in zip(self.shape, self.spacing)]
        self.hu = np.full(settings.size_irc, AIR, dtype=np.float32)
        self.tree: list[tuple[npt.NDArray[np.float64], float]] = []  # vessel points and radii
        self.taken: list[tuple[npt.NDArray[np.float64], float]] = []  # nodules drawn so far

    # ---------------------------------------------------------------- anatomy
    def body(self) -> None:
        """Skin, fat, muscle, ribs, spine, sternum; constant along the body but for the ribs."""
        rng, s = self.rng, self.scale
        z, y, x = self.axes
        center_y, center_x = self.size_mm[1] * rng.uniform(0.49, 0.53), self.size_mm[2] * rng.uniform(0.48, 0.52)
        half_x, half_y = self.size_mm[2] * rng.uniform(0.43, 0.46), self.size_mm[1] * rng.uniform(0.31, 0.35)
        self.middle = np.array([self.size_mm[0] / 2, center_y, center_x])
        self.half = np.array([half_y, half_x])
        dy, dx = (y - center_y)[:, None], (x - center_x)[None, :]
        # A superellipse, flatter than an ellipse as a lying chest is; depth below the skin in mm.
        radius = ((np.abs(dx) / half_x) ** 2.4 + (np.abs(dy) / half_y) ** 2.4) ** (1 / 2.4)
        depth = (1 - radius) * min(half_x, half_y)
        fat_mm = rng.uniform(8, 22) * s
        self.wall_mm = fat_mm + rng.uniform(20, 26) * s
        plane = np.full(depth.shape, AIR, dtype=np.float32)
        plane[depth > 0] = 10.0  # skin
        plane[depth > 2.0] = FAT
        plane[depth > fat_mm] = MUSCLE
        streaks = ndimage.gaussian_filter(rng.normal(0, 1, depth.shape).astype(np.float32), 6) * 14
        plane += np.where(depth > fat_mm, np.clip(streaks * 22, -60, 25), 0).astype(np.float32)
        spine_y = center_y + half_y - self.wall_mm * 0.62 - 12 * s
        vertebra = np.hypot(dx, (y - spine_y)[:, None])
        self.spine = np.array([spine_y, center_x])
        table_y = center_y + half_y * 1.08
        plane[(np.abs(y - table_y) < 3.0)[:, None] & (np.abs(dx) < half_x * 0.9)] = -650.0
        self.hu[:] = plane
        inner = depth - self.wall_mm
        rib = np.exp(-((inner + 7 * s) ** 2) / (2 * (3.0 * s) ** 2)) * (np.abs(dx) > 18 * s)
        pitch = 27 * s + 4
        phase = rng.uniform(0, pitch)
        lean = 0.55 * np.clip(dy, -half_y, half_y)
        for index, height in enumerate(z):
            wave = np.cos(2 * np.pi * (height + lean + phase) / pitch)
            strength = rib * np.clip((wave - 0.15) * 3, 0, 1)
            plane = self.hu[index]
            plane += strength * (BONE - MUSCLE)
            disc = 0.5 + 0.5 * np.cos(2 * np.pi * (height + phase) / (30 * s + 4))
            bone = np.clip(0.5 + (15 * s - vertebra) / 1.5, 0, 1)
            shell = np.clip(0.5 + (vertebra - 12.5 * s) / 1.5, 0, 1)
            plane[:] = plane * (1 - bone) + bone * (120 + 130 * min(1.0, 2 * disc) + 220 * shell * (disc > 0.25))
        self._paint(
            np.array([[0, spine_y + 19 * s, center_x], [self.size_mm[0], spine_y + 19 * s, center_x]]), 7 * s, 25.0
        )
        self._paint(
            np.array([[0, spine_y + 30 * s, center_x], [self.size_mm[0], spine_y + 30 * s, center_x]]),
            5 * s,
            BONE * 0.8,
        )
        front = center_y - half_y + self.wall_mm * 0.72
        self._paint(np.array([[0, front, center_x], [self.size_mm[0], front, center_x]]), 7 * s, BONE * 0.6)

    def lungs(self) -> None:
        """Two lungs as implicit fields (mm inside the pleura, approximately), cut by heart and diaphragm."""
        rng, s = self.rng, self.scale
        z, y, x = self.axes
        depth_z = self.size_mm[0]
        half_y, half_x = self.half - self.wall_mm
        self.field = np.full(self.hu.shape, -99.0, dtype=np.float32)
        self.hila = []
        for side in (-1, 1):
            cx = self.middle[2] + side * half_x * rng.uniform(0.53, 0.57)
            cy = self.middle[1] + half_y * rng.uniform(-0.05, 0.05)
            ax, ay = half_x * rng.uniform(0.43, 0.47), half_y * rng.uniform(0.92, 0.98)
            top = rng.uniform(-0.35, 0.1) * depth_z  # the apex may lie outside the scan
            az = depth_z * rng.uniform(0.95, 1.2)
            zc = top + az
            # Tilted towards the front: the lungs lean on the spine at the back.
            tilt = side * 0.12 * (y - cy)[None, :, None]
            rx = np.abs((x - cx)[None, None, :] + tilt) / ax
            ry = np.abs(y - cy)[None, :, None] / ay
            rz = np.clip(np.abs(z - zc)[:, None, None] / az, 0, 1) * 0.9
            inside = (1 - (rx**2.6 + ry**2.6 + rz**2.6) ** (1 / 2.6)) * min(ax, ay)
            dome = depth_z * rng.uniform(0.92, 1.1)
            # The diaphragm bulges upwards under each lung (slices count from head to foot in drawing order).
            bulge = (
                dome
                - 26 * s * np.clip(1 - ((x - cx)[None, None, :] / ax) ** 2 - ((y - cy)[None, :, None] / ay) ** 2, 0, 1)
                - z[:, None, None]
            )
            np.maximum(self.field, np.minimum(inside, bulge.astype(np.float32)), out=self.field)
            self.hila.append(np.array([depth_z * rng.uniform(0.42, 0.52), cy + 4 * s, self.middle[2] + side * 27 * s]))
        heart = np.array([depth_z * 0.75, self.middle[1] - half_y * 0.25, self.middle[2] + 16 * s])
        reach = np.array([depth_z * 0.32, half_y * 0.52, half_x * 0.36])
        blob = [(np.abs(a - c) / r) ** 2 for a, c, r in zip(self.axes, heart, reach)]
        outside_heart = np.sqrt(blob[0][:, None, None] + blob[1][None, :, None] + blob[2][None, None, :]) - 1
        np.minimum(self.field, (outside_heart * float(reach[1:].min())).astype(np.float32), out=self.field)
        cover = np.clip(0.5 + self.field / EDGE_MM, 0, 1)
        # Dependent lung is denser, and parenchyma is never even.
        slope = ((y - self.middle[1]) / max(half_y, 1) * rng.uniform(15, 45))[None, :, None]
        coarse = rng.normal(0, 1, tuple(np.maximum(self.shape // 8, 2))).astype(np.float32)
        texture = ndimage.zoom(ndimage.gaussian_filter(coarse, 1.0), self.shape / coarse.shape, order=1) * 45
        tissue = rng.uniform(-25, 25) + LUNG + slope + texture
        self.hu *= 1 - cover
        self.hu += cover * tissue

    def airways(self) -> None:
        """Trachea, two main bronchi and some branches, with walls."""
        s = self.scale
        start = np.array([0.0, self.middle[1] + 2 * s, self.middle[2]])
        carina = np.array([self.hila[0][0] - 14 * s, self.middle[1] + 6 * s, self.middle[2]])
        tubes = [(start, carina, 8.5 * s, 8.0 * s)]
        for hilum in self.hila:
            tubes.append((carina, hilum, 6.5 * s, 5.0 * s))
            tubes += self._tree(hilum, twigs=9, thinnest_mm=1.1 * s + 0.3, thickest_mm=4.0 * s)
        for a, b, r0, r1 in tubes:
            wall = max(0.9, 1.4 * s)
            self._paint(np.stack([a, b]), (r0 + wall, r1 + wall), -150.0, only_brighter=True)
        for a, b, r0, r1 in tubes:
            self._paint(np.stack([a, b]), (r0, r1), -980.0)

    def vessels(self) -> None:
        """A tree from each hilum that tapers towards the pleura."""
        s = self.scale
        for hilum in self.hila:
            along = np.array([s, 0.0, 0.0])
            self._paint(np.stack([hilum - 6 * along, hilum + 10 * along]), 9.0 * s, BLOOD, only_brighter=True)
            twigs = int(140 + 240 * s)
            for a, b, r0, r1 in self._tree(hilum, twigs=twigs, thinnest_mm=0.5, thickest_mm=5.2 * s + 0.6):
                self._paint(np.stack([a, b]), (r0, r1), BLOOD, only_brighter=True)
                self.tree.append((b, r1))

    def _tree(
        self, root: npt.NDArray[np.float64], *, twigs: int, thinnest_mm: float, thickest_mm: float
    ) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float, float]]:
        """Capsules of a tree that fills one lung: every twig grows from the nearest point that is closer to the root.

        Radii follow Murray's law, r proportional to the number of twigs behind to the power 1 / 2.7.
        """
        rng = self.rng
        side = np.sign(root[2] - self.middle[2])
        places: list[npt.NDArray[np.float64]] = []
        for _ in range(60 * twigs):
            point = rng.uniform(0.0, 1.0, 3) * self.size_mm
            if side * (point[2] - self.middle[2]) > 0 and self._depth(point) > 3.0:
                places.append(point)
                if len(places) == twigs:
                    break
        points = [root, *sorted(places, key=lambda p: float(np.linalg.norm(p - root)))]
        parents = [0]
        for n in range(1, len(points)):
            steps = np.linalg.norm(np.stack(points[:n]) - points[n], axis=1)
            # A little longer on the way out is cheaper than a detour back to the root.
            ways = steps + 0.25 * np.linalg.norm(np.stack(points[:n]) - root, axis=1)
            parent = int(ways.argmin())
            parents.append(parent)
        behind = np.ones(len(points))
        for n in range(len(points) - 1, 0, -1):
            behind[parents[n]] += behind[n]
        radii = np.minimum(thinnest_mm * behind ** (1 / 2.7), thickest_mm)
        segments = []
        for n in range(1, len(points)):
            a, b = points[parents[n]], points[n]
            bend = (a + b) / 2 + rng.normal(0, 0.07, 3) * float(np.linalg.norm(b - a))
            thick = min(float(radii[parents[n]]), float(radii[n]) * 1.25)
            middle = (thick + float(radii[n])) / 2
            segments += [(a, bend, thick, middle), (bend, b, middle, float(radii[n]))]
        return segments

    # ---------------------------------------------------------------- findings
    def nodules(self) -> tuple[DrawnNodule, ...]:
        """Draw the scan's nodules: free, beside a vessel, or on the pleura."""
        low, high = self.settings.nodules
        drawn = []
        for _ in range(int(self.rng.integers(low, high + 1))):
            traits = draw_nodule_traits(self.rng, self.settings.malignant_share)
            center = self._nodule_place(traits["diameter_mm"] / 2)
            if center is None:
                continue
            self._paint_nodule(center, traits)
            self.taken.append((center, traits["diameter_mm"] / 2))
            index, row, col = (center / self.spacing - 0.5).tolist()
            drawn.append(DrawnNodule(center_irc=(index, row, col), **traits))
        return tuple(drawn)

    def _nodule_place(self, radius: float) -> npt.NDArray[np.float64] | None:
        kind = self.rng.choice(["free", "vessel", "pleura"], p=[0.5, 0.25, 0.25])
        for attempt in range(400):
            if kind == "vessel" and self.tree:
                point, r = self.tree[int(self.rng.integers(len(self.tree)))]
                offset = self.rng.normal(0, 1, 3)
                center = point + offset / np.linalg.norm(offset) * (radius + r * 0.6)
            else:
                center = self.rng.uniform(0.08, 0.92, 3) * self.size_mm
            depth = self._depth(center)
            wanted = (radius * 0.45, radius * 0.8) if kind == "pleura" and attempt < 300 else (radius + 1.0, np.inf)
            clear = all(np.linalg.norm(center - c) > radius + r + 6 for c, r in self.taken)
            whole = (center > radius * 0.6).all() and (center < self.size_mm - radius * 0.6).all()
            if wanted[0] <= depth <= wanted[1] and clear and whole:
                return center
        return None

    def _paint_nodule(self, center: npt.NDArray[np.float64], traits: dict[str, Any]) -> None:
        rng, radius = self.rng, traits["diameter_mm"] / 2
        reach = radius * (1 + 2 * traits["lobulation"]) + 2 * EDGE_MM
        box, offsets = self._box(center - reach, center + reach)
        if box is None:
            return
        delta = [o - c for o, c in zip(offsets, center)]
        stretch = rng.uniform(0.88, 1.12, 3)
        stretch /= np.prod(stretch) ** (1 / 3)
        parts = np.meshgrid(*[d / f for d, f in zip(delta, stretch)], indexing="ij")
        distance = np.sqrt(sum(p**2 for p in parts)) + 1e-6
        bumps = np.zeros_like(distance)
        for _ in range(6):
            axis = rng.normal(0, 1, 3)
            axis /= np.linalg.norm(axis)
            cosine = sum(p * a for p, a in zip(parts, axis)) / distance
            bumps += np.clip(cosine, 0, None) ** 6
        surface = radius * (1 + traits["lobulation"] * (bumps - bumps.mean()))
        cover = np.clip(0.5 + (surface - distance) / EDGE_MM, 0, 1)
        patch = self.hu[box]
        if traits["texture"] == "solid":
            value = rng.uniform(-30, 80)
            np.maximum(patch, patch * (1 - cover) + cover * value, out=patch)
        else:
            haze = rng.uniform(-660, -500)
            np.maximum(patch, patch * (1 - cover) + cover * haze, out=patch)
            if traits["texture"] == "part-solid":
                core = np.clip(0.5 + (surface * rng.uniform(0.45, 0.65) - distance) / EDGE_MM, 0, 1)
                np.maximum(patch, patch * (1 - core) + core * rng.uniform(-40, 50), out=patch)
        if not traits["malignant"] and traits["texture"] == "solid" and rng.random() < 0.15:  # a calcified granuloma
            core = np.clip(0.5 + (radius * 0.6 - distance) / EDGE_MM, 0, 1)
            np.maximum(patch, core * rng.uniform(250, 600), out=patch, where=core > 0.01)
        value = -60.0 if traits["texture"] != "ground-glass" else -450.0
        for _ in range(traits["spicules"]):
            heading = rng.normal(0, 1, 3)
            heading /= np.linalg.norm(heading)
            far = center + heading * radius * rng.uniform(1.35, 1.9)
            self._paint(np.stack([center + heading * radius * 0.8, far]), (0.9, 0.35), value, only_brighter=True)

    def look_alikes(self, count: int) -> npt.NDArray[np.float64]:
        """Places that are no nodules: junctions, scars, lymph nodes, pleura; some are drawn, most are there already."""
        rng, places = self.rng, []
        for _ in range(max(2, count // 14)):  # scars: thin plates
            center = self._free_place(3.0)
            if center is None:
                continue
            u, v = np.linalg.qr(rng.normal(0, 1, (3, 2)))[0].T
            half = rng.uniform(3, 7)
            for step in np.linspace(-1, 1, 5):
                a, b = center + u * half * step - v * half * 0.6, center + u * half * step + v * half * 0.6
                self._paint(np.stack([a, b]), 0.75, rng.uniform(-120, 0), only_brighter=True)
            places.append(center)
        for _ in range(max(2, count // 20)):  # lymph nodes at the hila, flattened, in contact with the mediastinum
            hilum = self.hila[int(rng.integers(2))]
            center = hilum + rng.normal(0, 9 * self.scale + 2, 3)
            if self._depth(center) > -6 and self._clear(center, 6):
                a, b = center - rng.normal(0, 1.5, 3), center + rng.normal(0, 1.5, 3)
                self._paint(np.stack([a, b]), rng.uniform(2.0, 3.6), rng.uniform(20, 60), only_brighter=True)
                places.append(center)
        vessels = [p for p, r in self.tree if r > 0.6 and self._clear(p, 5)]
        pleura = [p for p in rng.uniform(0.05, 0.95, (count * 12, 3)) * self.size_mm if 0 < self._depth(p) < 3]
        rest = max(0, count - len(places))
        for pool, share in ((vessels, 0.7), (pleura, 0.3)):
            order = rng.permutation(len(pool))[: round(rest * share)]
            places += [pool[i] + rng.normal(0, 0.7, 3) for i in order if self._clear(pool[i], 5)]
        missing = count - len(places)
        for _ in range(max(0, missing)):
            place = self._free_place(2.0)
            if place is not None:
                places.append(place)
        if not places:
            return np.empty((0, 3))
        return np.clip(np.stack(places) / self.spacing - 0.5, 0, self.shape - 1.0)

    def specks(self) -> npt.NDArray[np.float64]:
        """Opacities under 3 mm, which LUNA16 lists as excluded."""
        places = []
        for _ in range(int(self.rng.integers(1, 4))):
            center = self._free_place(2.0)
            if center is not None:
                self._paint(np.stack([center, center + 0.1]), self.rng.uniform(0.8, 1.3), -50.0, only_brighter=True)
                places.append(center)
        return np.stack(places) / self.spacing - 0.5 if places else np.empty((0, 3))

    # ---------------------------------------------------------------- the scanner
    def scan(self) -> tuple[npt.NDArray[np.int16], int]:
        """Blur, slice profile, correlated noise, rounding, and the padding outside a circular field of view."""
        rng = self.rng
        soft = float(rng.uniform(0.45, 0.75))
        hu = ndimage.gaussian_filter(self.hu, (0.35, soft, soft), mode="nearest", truncate=3.0)
        noise = rng.standard_normal(self.hu.shape, dtype=np.float32)
        grain = float(rng.uniform(0.5, 0.9))
        noise = ndimage.gaussian_filter(noise, (0.0, grain, grain), mode="wrap", truncate=3.0)
        noise *= float(rng.uniform(*self.settings.noise_hu)) / float(noise.std())
        hu += noise
        hu = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
        padding = int(rng.choice([0, -2048, -3024], p=[0.5, 0.25, 0.25]))
        if padding:
            rows, cols = (np.arange(n) - (n - 1) / 2 for n in self.shape[1:])
            outside = np.hypot(rows[:, None], cols[None, :]) > min(self.shape[1:]) / 2
            hu[:, outside] = padding
        return hu, padding

    # ---------------------------------------------------------------- brushes
    def _depth(self, point: npt.NDArray[np.float64]) -> float:
        """About how many mm inside the lung a point lies; negative outside."""
        voxel = np.floor(point / self.spacing).astype(int)
        if (voxel < 0).any() or (voxel >= self.shape).any():
            return -99.0
        return float(self.field[tuple(voxel)])

    def _clear(self, point: npt.NDArray[np.float64], margin: float) -> bool:
        return all(np.linalg.norm(point - c) > r + margin for c, r in self.taken)

    def _free_place(self, depth: float) -> npt.NDArray[np.float64] | None:
        for _ in range(200):
            point = self.rng.uniform(0.05, 0.95, 3) * self.size_mm
            if self._depth(point) > depth and self._clear(point, 5):
                return point
        return None

    def _box(
        self, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
    ) -> tuple[tuple[slice, slice, slice] | None, list[npt.NDArray[np.float32]]]:
        start = np.maximum(np.floor(low / self.spacing).astype(int), 0)
        stop = np.minimum(np.ceil(high / self.spacing).astype(int) + 1, self.shape)
        if (start >= stop).any():
            return None, []
        box = tuple(slice(a, b) for a, b in zip(start.tolist(), stop.tolist()))
        return box, [axis[part] for axis, part in zip(self.axes, box)]  # type: ignore[return-value]

    def _paint(
        self,
        ends: npt.NDArray[np.float64],
        radius: float | tuple[float, float],
        value: float,
        *,
        only_brighter: bool = False,
    ) -> None:
        """A capsule from one end to the other, its radius running from the first value to the second, soft-edged."""
        r0, r1 = radius if isinstance(radius, tuple) else (radius, radius)
        reach = max(r0, r1) + EDGE_MM
        box, offsets = self._box(ends.min(0) - reach, ends.max(0) + reach)
        if box is None:
            return
        along = ends[1] - ends[0]
        delta = [(o - c).astype(np.float32) for o, c in zip(offsets, ends[0])]
        dz, dy, dx = delta[0][:, None, None], delta[1][None, :, None], delta[2][None, None, :]
        t = (dz * along[0] + dy * along[1] + dx * along[2]) / max(float(along @ along), 1e-9)
        t = np.clip(t, 0, 1).astype(np.float32)
        distance = np.sqrt((dz - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dx - t * along[2]) ** 2)
        cover = np.clip(0.5 + (r0 + (r1 - r0) * t - distance) / EDGE_MM, 0, 1)
        # A vessel thinner than the edge is wide never covers a voxel wholly: it fades, as partial volume makes it.
        patch = self.hu[box]
        mixed = patch * (1 - cover) + cover * value
        if only_brighter:
            np.maximum(patch, mixed, out=patch)
        else:
            patch[:] = mixed


def _write_scan(
    folder: Path, series_uid: str, seed: int, number: int, settings: PhantomSettings
) -> dict[str, list[tuple[Any, ...]]]:
    """Draw and write one scan in a process of its own; returns its rows of the tables."""
    rng = np.random.default_rng([seed, number])
    phantom = draw_phantom(series_uid, rng, settings)
    _write_mhd(folder / f"{series_uid}.mhd", phantom)
    grid = phantom.grid
    rows: dict[str, list[tuple[Any, ...]]] = {"annotations": [], "candidates": [], "excluded": [], "malignancy": []}
    for nodule in phantom.nodules:
        center = irc_to_xyz(nodule.center_irc, grid)
        half = nodule.diameter_mm / 2
        rows["annotations"].append((series_uid, *center.tolist(), nodule.diameter_mm))
        rows["malignancy"].append(
            (
                series_uid,
                *center.tolist(),
                nodule.diameter_mm,
                nodule.malignant,
                str(list(nodule.ratings)),
                *(center - half).tolist(),
                *(center + half).tolist(),
                len(nodule.ratings),
            )
        )
        near = center + rng.normal(0, half / 6, 3)
        rows["candidates"].append((series_uid, *near.tolist(), 1))
    rows["candidates"] += [(series_uid, *p, 0) for p in irc_to_xyz(phantom.negatives_irc, grid).tolist()]
    rows["excluded"] += [(series_uid, *p, -1.0) for p in irc_to_xyz(phantom.excluded_irc, grid).tolist()]
    return rows


def _write_mhd(path: Path, phantom: Phantom) -> None:
    """Header and raw data as LUNA16 has them; the header comes last: it never names a file that is not whole."""
    grid, raw = phantom.grid, path.with_suffix(".raw")
    beside = raw.with_name(f".{raw.name}.{os.getpid()}")
    try:
        phantom.hu.astype("<i2").tofile(beside)
        os.replace(beside, raw)
    finally:
        beside.unlink(missing_ok=True)
    # MetaImage writes one axis after the other: the transposed direction, row by row.
    matrix = np.asarray(grid.direction).T.ravel()
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(f"{v:.12g}" for v in matrix),
        "Offset": " ".join(f"{v:.12g}" for v in grid.origin_xyz),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": " ".join(f"{v:.12g}" for v in grid.spacing_xyz),
        "DimSize": " ".join(str(n) for n in grid.shape_irc[::-1]),
        "ElementType": "MET_SHORT",
        "ElementDataFile": raw.name,
    }
    write_text_atomic(path, "".join(f"{name} = {value}\n" for name, value in lines.items()))


def _direction(rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    """Mostly straight; some scans flipped, some tilted by a few degrees."""
    matrix = np.eye(3)
    if rng.random() < 0.2:
        matrix = np.diag([-1.0, -1.0, 1.0])
    if rng.random() < 0.15:
        angle = np.deg2rad(rng.uniform(-6, 6))
        tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        matrix = tilt @ matrix
    a, b, c = ((float(r[0]), float(r[1]), float(r[2])) for r in np.round(matrix, 12))
    return a, b, c


def _series_uid(seed: int, number: int) -> str:
    digits = "".join(str(d) for d in np.random.default_rng([seed, number, 7]).integers(0, 10, 24))
    return f"{UID_ROOT}.{seed + 1}.1{digits}{number:04d}"
