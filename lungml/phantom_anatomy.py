"""What does a chest look like, as far as a coarse CT tells?

It is no atlas: proportions are an adult's in round mm, at the scale of the field of view, and nothing was fitted.
HU are textbook values (Hounsfield's scale: water 0, air -1000). Axes are the canvas's: z up, y back, x to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lungml.phantom_canvas import AIR_HU, EDGE_MM, Array, Canvas, CoarseField

SKIN_HU, FAT_HU, MUSCLE_HU, LIVER_HU, SPLEEN_HU, STOMACH_HU = 10.0, -100.0, 45.0, 62.0, 52.0, 22.0
LUNG_HU, AIRWAY_HU, WALL_HU = -860.0, -985.0, -60.0
BLOOD_HU, CONTRAST_HU = 42.0, (120.0, 260.0)  # plain, and with contrast medium
CORTEX_HU, MARROW_HU, CARTILAGE_HU = 480.0, 190.0, 110.0
ADULT_WIDTH_MM = 360.0  # of a full field of view; a smaller one holds a smaller body with nodules of full size
LARGEST = 1.25  # body, an adult being 1: wider fields show more air
ADULT_LUNG_MM = 230.0  # from the top of the diaphragm to the apex
MURRAY = 1 / 2.7  # a vessel's radius grows with the twigs behind it to this power; 1 / 3 in Murray's law


@dataclass(frozen=True)
class Segment:
    """A piece of a vessel: its ends in mm (z, y, x), and its radii there in mm."""

    start: Array
    end: Array
    radii: tuple[float, float]
    fork: bool  # two or more pieces go on from its end


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What everything else is placed by; mm from the volume's corner.

    Attributes:
        s: this body's size, an adult's being 1.
        h: the same along the body, where a short scan squeezes the lungs.
        base: height of the diaphragm.
        middle: (y, x) of the body's axis.
        half: (y, x) half axes of the skin.
        fat_mm, wall_mm: skin to muscle, skin to pleura.
        blood_hu: of the vessels.
    """

    s: float
    h: float
    base: float
    middle: Array
    half: Array
    fat_mm: float
    wall_mm: float
    blood_hu: float

    def point(self, z: float, y: float, x: float) -> Array:
        """Adult mm above the diaphragm, behind and to the left of the axis, as (z, y, x) mm from the corner."""
        return np.array([self.base + z * self.h, self.middle[0] + y * self.s, self.middle[1] + x * self.s])

    def reach(self, z: float, y: float, x: float) -> Array:
        """Adult mm as half axes (z, y, x) in mm."""
        return np.array([z * self.h, y * self.s, x * self.s])


@dataclass(frozen=True, kw_only=True)
class Chest:
    """What findings are put into.

    Attributes:
        s: this body's size, an adult's being 1.
        depth_mm: about how deep in the lung a voxel lies; negative outside.
        hila: roots of the right and the left lung, (z, y, x) mm from the volume's corner.
        vessels: arteries and veins, from the hila outwards.
    """

    s: float
    depth_mm: CoarseField
    hila: tuple[Array, Array]
    vessels: tuple[Segment, ...]


def draw_chest(canvas: Canvas) -> Chest:
    """Draw body, organs, lungs, airways and vessels on an empty canvas."""
    rng = canvas.rng
    frame = _draw_frame(rng, canvas.size_mm)
    right, left = (frame.point(rng.uniform(108, 122), rng.uniform(16, 24), 36 * side) for side in (-1, 1))
    hila = right, left
    _draw_body(canvas, frame)
    _draw_organs(canvas, frame, hila)
    depth_mm = _lung_depth(canvas, frame, hila)
    _draw_lungs(canvas, frame, depth_mm)
    vessels = _draw_trees(canvas, frame, hila, depth_mm)
    return Chest(s=frame.s, depth_mm=depth_mm, hila=hila, vessels=vessels)


def _draw_frame(rng: np.random.Generator, size_mm: Array) -> Frame:
    size_z, size_y, size_x = size_mm.tolist()
    s = min(size_x / ADULT_WIDTH_MM, LARGEST)
    adult = ADULT_LUNG_MM * s * rng.uniform(0.92, 1.08)
    height = max(min(adult, 0.86 * size_z), 0.65 * adult)  # short scans squeeze the lungs, and at last cut them
    fat_mm, half_x = rng.uniform(8, 22) * s, rng.uniform(0.43, 0.46) * s * ADULT_WIDTH_MM
    return Frame(
        s=s,
        h=height / ADULT_LUNG_MM,
        base=(size_z - height) * rng.uniform(0.45, 0.75),
        middle=np.array([size_y * rng.uniform(0.49, 0.53), size_x * rng.uniform(0.48, 0.52)]),
        half=np.array([half_x * rng.uniform(0.70, 0.76), half_x]),
        fat_mm=fat_mm,
        wall_mm=fat_mm + rng.uniform(19, 25) * s,
        blood_hu=float(rng.uniform(*CONTRAST_HU)) if rng.random() < 0.5 else BLOOD_HU,
    )


# -------------------------------------------------------------------- wall and bones
def _below_skin(canvas: Canvas, frame: Frame, steps: tuple[int, int] = (1, 1)) -> npt.NDArray[np.float32]:
    """(rows, cols) mm from the skin inwards along the radius; a superellipse, flatter than an ellipse."""
    # The same wobble whatever the steps: it hangs on the frame alone.
    y, x = (np.arange(0, n + k - 1, k) * mm + mm / 2 for n, k, mm in zip(canvas.shape[1:], steps, canvas.spacing[1:]))
    dy, dx = (y - frame.middle[0])[:, None], (x - frame.middle[1])[None, :]
    radius = ((np.abs(dx) / frame.half[1]) ** 2.3 + (np.abs(dy) / frame.half[0]) ** 2.3) ** (1 / 2.3)
    angle = np.arctan2(dy, dx)
    wobble = 1 + 0.02 * np.cos(4 * angle + frame.fat_mm) + 0.015 * np.cos(3 * angle + frame.wall_mm)
    radius = np.maximum(radius * wobble, 0.02)
    return (np.hypot(dx, dy) * (1 / radius - 1)).astype(np.float32)


def _draw_body(canvas: Canvas, frame: Frame) -> None:
    """Skin, fat, muscle, table; ribs, sternum, vertebrae."""
    rng, s, half_y = canvas.rng, frame.s, frame.half[0]
    _, y, x = canvas.axes
    dy, dx = (y - frame.middle[0])[:, None], (x - frame.middle[1])[None, :]
    depth = _below_skin(canvas, frame)
    fat, wall = frame.fat_mm, frame.wall_mm
    plane = np.interp(
        depth,
        [-0.5, 0.5, 2.0, 2.6, fat - 0.5, fat + 0.5, wall - 0.5, wall + 0.5],
        [AIR_HU, SKIN_HU, SKIN_HU, FAT_HU, FAT_HU, MUSCLE_HU, MUSCLE_HU, FAT_HU],
    )
    grain = rng.normal(0, 1, depth.shape).astype(np.float32)
    streaks = ndimage.gaussian_filter(grain, [3 * s / mm for mm in canvas.spacing[1:]], truncate=3.0)
    streaks /= max(float(streaks.std()), 1e-6)
    muscle = (depth > fat) & (depth < wall)
    plane += np.where(muscle, np.clip(-70 * (streaks - 1.0), -130, 0) * (streaks > 1.0), 0)
    bed = dy - half_y * 1.05 + 0.06 * dx**2 / frame.half[1]
    for offset in (0.0, 14 * s):
        plane[(np.abs(bed - offset) < 1.0 + s) & (np.abs(dx) < frame.half[1] * 0.95) & (depth < 0)] = -550.0
    front = np.abs(depth - wall + 7 * s) / (5 * s)
    breast = np.hypot(front, np.abs(dx) / (17 * s))
    plane = np.where((breast < 1) & (dy < 0), np.where(breast > 0.7, 0.7 * CORTEX_HU, MARROW_HU * 0.7), plane)
    canvas.hu[:] = plane.astype(np.float32)
    _draw_ribs(canvas, frame, depth, dy, dx)
    _draw_spine(canvas, frame)


def _draw_ribs(
    canvas: Canvas, frame: Frame, depth: npt.NDArray[np.float32], dy: npt.NDArray[np.float32], dx: Array
) -> None:
    """Ribs run in the wall, down towards the front, and end in cartilage."""
    s, pitch = frame.s, 25 * frame.s
    ring = np.nonzero((np.abs(depth - frame.wall_mm + 6 * s) < 4.5 * s) & (np.abs(dx) > 19 * s))
    across = (depth[ring] - frame.wall_mm + 6 * s) / (3.8 * s)
    back = np.broadcast_to(dy, depth.shape)[ring]
    in_front = back < -0.5 * frame.half[0]
    phase = canvas.rng.uniform(0, pitch)
    for index, height in enumerate(canvas.axes[0]):
        along = (height - 0.55 * back + phase) % pitch - pitch / 2
        q = np.hypot(across, along / (5.5 * s))
        bone = np.where(in_front, CARTILAGE_HU, np.where(q > 0.62, CORTEX_HU, MARROW_HU))
        cover = np.clip(0.5 + (1 - q) * 4 * s / EDGE_MM, 0, 1)
        patch = canvas.hu[index][ring]
        canvas.hu[index][ring] = patch + cover * (bone - patch)


def _draw_spine(canvas: Canvas, frame: Frame) -> None:
    """Vertebral bodies with discs between, the canal behind, arch and processes."""
    s = frame.s
    y_mm = _spine_y(frame)
    z_mm, x_mm = canvas.size_mm[0], frame.middle[1]
    found = canvas.box(np.array([0, y_mm - 20 * s, x_mm - 36 * s]), np.array([z_mm, y_mm + 52 * s, x_mm + 36 * s]))
    if found is None:
        return
    box, (_, y, x) = found
    z = canvas.axes[0][:, None, None]
    dy, dx = (y - y_mm) / s, np.abs(x - x_mm) / s
    phase = (z + canvas.rng.uniform(0, 24 * s)) % (24 * s) / (24 * s)
    disc = np.clip((np.abs(phase - 0.5) - 0.36) * 20, 0, 1)  # 1 within a disc
    body = np.hypot(dy / 14, dx / 17)
    patch = canvas.hu[box]

    def mix(cover: npt.NDArray[np.floating], value: npt.NDArray[np.floating] | float) -> None:
        patch[:] = patch + np.clip(cover, 0, 1) * (value - patch)

    mix(0.5 + (1 - np.hypot((dy - 24) / 14, dx / 16)) * 14, 0.8 * CORTEX_HU * (1 - disc) + MUSCLE_HU * disc)  # arch
    leaf = np.maximum(np.abs(dy - 26 - 0.2 * dx) / 4.5, dx / 32)  # transverse processes
    mix((0.5 + (1 - leaf) * 5) * (1 - disc), 0.65 * CORTEX_HU)
    spike = np.maximum(dx / 3.2, np.abs(dy - 34) / (0.45 * (frame.wall_mm - frame.fat_mm) / s))
    mix(0.5 + (1 - spike) * 4, 0.7 * CORTEX_HU * (1 - 0.4 * disc))
    mix(0.5 + (1 - np.hypot((dy - 23) / 8.5, dx / 10)) * 9, 18.0)  # the canal
    bone = np.where(body > 0.86, CORTEX_HU, MARROW_HU)
    mix(0.5 + (1 - body) * 15 * s / EDGE_MM, bone * (1 - disc) + 80.0 * disc)


def _spine_y(frame: Frame) -> float:
    return float(frame.middle[0] + frame.half[0] - frame.wall_mm - 10 * frame.s)


# -------------------------------------------------------------------- mediastinum and abdomen
def _draw_organs(canvas: Canvas, frame: Frame, hila: tuple[Array, Array]) -> None:
    """Heart, great vessels, oesophagus; liver, stomach with its gas, spleen. The lungs later cut them to shape."""
    rng, s, blood, at = canvas.rng, frame.s, frame.blood_hu, frame.point
    canvas.blob(at(-90, 0, 62), frame.reach(94, 92, 74), STOMACH_HU, edge_mm=2.0)
    canvas.blob(at(-45, 48, 84), frame.reach(42, 34, 28), SPLEEN_HU + 0.3 * (blood - BLOOD_HU), edge_mm=2.0)
    canvas.blob(at(-50, -38, 50), frame.reach(22, 18, 26), -950.0, edge_mm=2.0)
    liver = LIVER_HU + 0.25 * (blood - BLOOD_HU) + rng.uniform(-8, 8)
    canvas.blob(at(-82, -6, -50), frame.reach(98, 90, 80), liver, edge_mm=2.0)
    canvas.blob(at(42, -18, 20), frame.reach(55, 44, 52), 46.0, edge_mm=2.0)
    if blood > BLOOD_HU:
        for z, y, x, reach in ((30, -8, 38, 26), (48, -34, 4, 26), (66, 14, 4, 22), (58, -6, -18, 18)):
            canvas.blob(at(z, y, x), frame.reach(reach * 1.2, reach, reach), blood * rng.uniform(0.9, 1.1), edge_mm=2.0)
    back = (_spine_y(frame) - frame.middle[0]) / s
    arch = [(72, -22, 2), (128, -30, -10), (158, -22, -4), (166, 0, 8), (158, back - 18, 20), (130, back - 12, 24)]
    _string(canvas, frame, [*arch, (-120, back - 18, 12)], 12.5, blood)
    _string(canvas, frame, [(74, -12, -20), (240, -18, -22)], 8.0, blood)  # superior vena cava
    _string(canvas, frame, [(84, -34, 14), (112, -20, 12), (120, 2, 6)], 12.0, blood)  # pulmonary trunk
    for hilum in hila:
        canvas.capsule(at(116, 4, 4), hilum, (10 * s, 8 * s), blood)
    for x in (-14, 14):  # arteries of the neck
        _string(canvas, frame, [(166, -6, x / 2), (250, -4, x * 1.6)], 4.5, blood)
    gullet = [(-60, back - 20, 6), (100, back - 20, 2), (260, back - 22, 0)]
    _string(canvas, frame, gullet, 7.5, 38.0)
    if rng.random() < 0.5:
        _string(canvas, frame, gullet[1:], 1.6, -400.0)


def _string(
    canvas: Canvas, frame: Frame, points: Sequence[tuple[float, float, float]], radius: float, value: float
) -> None:
    for a, b in pairwise(points):
        canvas.capsule(frame.point(*a), frame.point(*b), (radius * frame.s, radius * frame.s), value)


# -------------------------------------------------------------------- lungs
def _lung_depth(canvas: Canvas, frame: Frame, hila: tuple[Array, Array]) -> CoarseField:
    """The lungs are what the thorax leaves beside heart, vessels, spine and the diaphragm's domes, rounded off."""
    rng, s = canvas.rng, frame.s
    steps = tuple(max(1, round(3 * max(s, 0.3) / mm)) for mm in canvas.spacing.tolist())
    z, y, x = (
        ((np.arange(0, n + k - 1, k) + 0.5) * mm).astype(np.float32)
        for n, k, mm in zip(canvas.shape, steps, canvas.spacing)
    )
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    left = x > frame.middle[1]

    def outside(center: Array, reach: Array) -> npt.NDArray[np.float32]:
        parts = [((axis - np.float32(c)) / np.float32(r)) ** 2 for axis, c, r in zip((z, y, x), center, reach)]
        return (np.sqrt((parts[0] + parts[1]) + parts[2]) - 1) * np.float32(reach.min())

    def sided(right_mm: float, left_mm: float) -> npt.NDArray[np.float32]:
        return np.where(left, left_mm, right_mm).astype(np.float32)

    at, reach = frame.point, frame.reach
    thorax = _below_skin(canvas, frame, steps[1:])[None] - np.float32(frame.wall_mm)
    # Above its widest place each lung narrows to a dome of its own.
    widest = at(rng.uniform(60, 90), 6, 0)
    apex = frame.base + frame.h * ADULT_LUNG_MM * sided(rng.uniform(0.96, 1.0), rng.uniform(0.96, 1.0))
    rise = np.clip(z - np.float32(widest[0]), 0, None) / (apex - np.float32(widest[0]))
    aside = (np.abs(x - np.float32(frame.middle[1])) - np.float32(56 * s)) / np.float32(76 * s)
    behind = (y - np.float32(widest[1])) / np.float32(112 * s)
    dome = (1 - np.sqrt(rise**2 + behind**2 + aside**2)) * np.float32(72 * s)
    width = 9 * s + 9 * s * np.clip((y - np.float32(frame.middle[0])) / np.float32(60 * s), 0, 1)
    slab = np.abs(x - np.float32(frame.middle[1])) - width
    spine = np.hypot(x - np.float32(frame.middle[1]), y - np.float32(_spine_y(frame))) - np.float32(21 * s)
    back = (_spine_y(frame) - frame.middle[0]) / s
    aorta = np.hypot(x - at(0, 0, 22)[2], y - at(0, back - 14, 0)[1]).astype(np.float32) - np.float32(15 * s)
    aorta = np.maximum(aorta, z - np.float32(at(158, 0, 0)[0]))
    walls = [
        *(thorax, dome, slab, spine, aorta),
        outside(at(42, -18, 20), reach(60, 48, 57)),
        outside(at(140, -12, 0), reach(48, 46, 32)),
        *(outside(hilum, reach(20, 15, 14)) for hilum in hila),
        np.where(left, outside(at(-90, 0, 62), reach(96, 94, 76)), outside(at(-82, -6, -50), reach(100, 92, 82))),
        z - np.float32(at(-62, 0, 0)[0]),
    ]
    soft = np.float32(3 * s)
    total = np.zeros(np.broadcast_shapes(*(w.shape for w in walls)), dtype=np.float32)
    for wall in walls:  # the least of them, with its creases rounded
        total += np.exp(np.minimum(-wall / soft, 60))
    depth = -soft * np.log(total)
    wobble = ndimage.gaussian_filter(rng.standard_normal(depth.shape, dtype=np.float32), 3.0, truncate=3.0)
    depth += wobble * np.float32(1.1 * s / max(float(wobble.std()), 1e-6))
    return CoarseField(depth, steps, canvas.shape)


def _draw_lungs(canvas: Canvas, frame: Frame, depth: CoarseField) -> None:
    """Parenchyma: denser where it lies lowest (at the back), never even."""
    rng = canvas.rng
    slope = (canvas.axes[1] - frame.middle[0])[:, None] / max(frame.half[0], 1) * rng.uniform(20, 60)
    mottle = np.zeros(depth.values.shape, np.float32)
    for sigma, amplitude in ((4.0, 14.0), (0.8, 18.0)):
        layer = ndimage.gaussian_filter(rng.standard_normal(mottle.shape, dtype=np.float32), sigma, truncate=2.5)
        mottle += layer * np.float32(amplitude / max(float(layer.std()), 1e-6))
    tissue = CoarseField(mottle, depth.steps, depth.shape)
    slope = (slope + LUNG_HU + rng.uniform(-25, 25)).astype(np.float32)
    for index, plane in enumerate(canvas.hu):
        if depth.values[index // depth.steps[0]].max() < -5 * frame.s - EDGE_MM:
            continue
        cover = depth.plane(index)
        cover *= np.float32(1 / EDGE_MM)
        cover += np.float32(0.5)
        np.minimum(np.maximum(cover, 0, out=cover), 1, out=cover)
        change = tissue.plane(index)
        change += slope
        change -= plane
        change *= cover
        plane += change


# -------------------------------------------------------------------- trees
def _draw_trees(canvas: Canvas, frame: Frame, hila: tuple[Array, Array], depth_mm: CoarseField) -> tuple[Segment, ...]:
    """Trachea and bronchi, arteries beside them, veins between; returns arteries and veins."""
    rng, s = canvas.rng, frame.s
    arteries, veins, bronchi = [], [], []
    carina = frame.point(140, 22, 0)
    trachea = Segment(frame.point(300, 8, 0), carina, (8.5 * s, 8.0 * s), True)
    for hilum in hila:
        side = float(np.sign(hilum[2] - frame.middle[1]))
        grown = _grow(canvas, frame, depth_mm, hilum, twigs=int(320 + 680 * s * s), side=side)
        arteries += grown
        root = hilum + np.array([-26 * frame.h, -8 * s, -2 * s * side])
        veins += _grow(canvas, frame, depth_mm, root, twigs=int(220 + 480 * s * s), side=side)
        # Each bronchus runs beside its artery, a little narrower than it, and is lost before the artery is.
        beside = np.array([0.35, -0.6, 0.7 * side]) + rng.normal(0, 0.2, 3)
        beside /= np.linalg.norm(beside)
        bronchi.append(Segment(carina, hilum + beside * 8 * s, (6.2 * s, 4.6 * s), True))
        for piece in grown:
            r0, r1 = (0.72 * r for r in piece.radii)
            if r1 > 0.5 + 0.3 * s:
                start, end = (p + beside * (2.1 * r + 0.5) for p, r in ((piece.start, r0), (piece.end, r1)))
                bronchi.append(Segment(start, end, (r0, r1), piece.fork))
    tubes = [trachea, *bronchi]
    for tube in tubes:
        r0, r1 = (r + 0.25 + 0.16 * r for r in tube.radii)
        canvas.capsule(tube.start, tube.end, (r0, r1), WALL_HU, only_brighter=True)
    for tube in tubes:
        canvas.capsule(tube.start, tube.end, tube.radii, AIRWAY_HU)
    for piece in (*arteries, *veins):
        canvas.capsule(piece.start, piece.end, piece.radii, frame.blood_hu, only_brighter=True)
    return (*arteries, *veins)


def _grow(
    canvas: Canvas, frame: Frame, depth_mm: CoarseField, root: Array, *, twigs: int, side: float
) -> list[Segment]:
    """A tree that fills one lung: each twig leaves from where the way is short, to the tree and along it to the root.

    That is the balance of wire and path of Cuntz et al., 2010, PLoS Comput Biol 6(8), with a factor of 0.45.
    """
    rng, s = canvas.rng, frame.s
    places = rng.uniform(0, 1, (24 * twigs, 3)) * canvas.size_mm
    inside = side * (places[:, 2] - frame.middle[1]) > 0
    inside[inside] = depth_mm.at(canvas.voxels(places[inside])) > 1.0 + 2.0 * s
    places = places[inside][:twigs]
    places = places[np.argsort(np.linalg.norm(places - root, axis=1), kind="stable")]
    points = np.concatenate([root[None], places])
    count = len(points)
    parents, paths = np.zeros(count, dtype=int), np.zeros(count)
    for n in range(1, count):
        offsets = points[:n] - points[n]
        steps = np.sqrt((offsets * offsets).sum(axis=1))
        parent = int((steps + 0.45 * paths[:n]).argmin())
        parents[n], paths[n] = parent, paths[parent] + steps[parent]
    behind, children = np.ones(count), np.bincount(parents[1:], minlength=count)
    for n in range(count - 1, 0, -1):
        behind[parents[n]] += behind[n]
    # The twig at the pleura is below a scanner's resolution; the trunk is bounded by the hilum.
    radii = np.minimum((0.22 + 0.16 * s) * behind**MURRAY, 5.0 * s + 0.4)
    pieces = []
    for n in range(1, count):
        start, end, radius = points[parents[n]], points[n], float(radii[n])
        thick, fork = min(float(radii[parents[n]]), radius * 1.3), bool(children[n] > 1)
        length = float(np.linalg.norm(end - start))
        if length < 8.0 * s:
            pieces.append(Segment(start, end, (thick, radius), fork))
            continue
        bend = (start + end) / 2 + rng.normal(0, 0.06, 3) * length
        middle = (thick + radius) / 2
        pieces += [Segment(start, bend, (thick, middle), False), Segment(bend, end, (middle, radius), fork)]
    return pieces
