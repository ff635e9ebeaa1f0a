"""What would LUNA16 look like if it were drawn instead of scanned?

Chest-like synthetic CTs in the challenge's own layout, for demonstrations and tests: a body with lungs, ribs, spine,
heart, airways and a branching vessel tree (`phantom_anatomy.py`), nodules whose truth is known exactly, and look-alikes
(`phantom_findings.py`). All is drawn in voxel axes, in mm; direction and origin enter only the header, and the tables
through `Grid`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml.errors import LunaError
from lungml.files import whole_file, write_csv_atomic, write_text_atomic
from lungml.geometry import Grid, irc_to_xyz
from lungml.phantom_anatomy import draw_chest
from lungml.phantom_canvas import Canvas
from lungml.phantom_findings import DrawnNodule, Findings
from lungml.textures import TEXTURES_CSV, Textured, write_textures

PHANTOM_VERSION = 3  # raise it when any voxel or row changes
UID_ROOT = "1.2.826.0.1.3680043.8.498"  # pydicom's root for made-up uids, which some de-identified scans have too
SUBSETS = 10
TABLE_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
MALIGNANCY_COLUMNS = (
    *TABLE_COLUMNS, "mal_bool", "mal_details",
    "bboxLowX", "bboxLowY", "bboxLowZ", "bboxHighX", "bboxHighY", "bboxHighZ", "len_mal_details",
)  # fmt: skip


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
        if len(self.size_irc) != 3:
            raise PhantomError(f"size {self.size_irc} is not slices, rows and columns")
        if min(self.size_irc) < 32 or max(self.size_irc) > 1024:
            raise PhantomError(f"size {self.size_irc} is not between 32 and 1024 voxels along each axis")
        ranges = (self.nodules, self.noise_hu, self.slice_mm, self.pixel_mm)
        if any(not 0 <= low <= high < np.inf for low, high in ranges) or min(self.slice_mm[0], self.pixel_mm[0]) <= 0:
            raise PhantomError(f"nodules, noise_hu, slice_mm or pixel_mm is not a least and a most: {ranges}")
        if self.negatives_per_nodule < 0 or not 0 <= self.malignant_share <= 1:
            shares = f"{self.negatives_per_nodule} negatives per nodule, a malignant share of {self.malignant_share}"
            raise PhantomError(f"{shares}: not to be drawn")


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
    """Write a synthetic LUNA16 tree: `subset0..9/<uid>.mhd + .raw` and the six tables.

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
        if _read_json(manifest) == made_of:
            return
        raise PhantomError(f"{out}: holds synthetic scans of other settings; choose another folder or delete it")
    _refuse_foreign(out, made_of)
    write_text_atomic(out / "phantom.started", json.dumps(made_of))
    for subset in range(SUBSETS):
        (out / f"subset{subset}").mkdir(parents=True, exist_ok=True)
    uids = [_series_uid(seed, number) for number in range(scans)]
    rows: dict[int, dict[str, list[Any]]] = {}
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
    write_textures(out / TEXTURES_CSV, tables["textures"])
    write_text_atomic(out / "seriesuids.csv", "".join(f"{uid}\n" for uid in sorted(uids)))
    write_text_atomic(manifest, json.dumps(made_of, indent=1))
    (out / "phantom.started").unlink()


def draw_phantom(series_uid: str, rng: np.random.Generator, settings: PhantomSettings) -> Phantom:
    """Draw one scan; the generator decides everything that the settings leave open."""
    slices_mm = np.arange(settings.slice_mm[0], settings.slice_mm[1] + 0.01, 0.25)
    slice_mm, pixel_mm = float(rng.choice(slices_mm)), round(float(rng.uniform(*settings.pixel_mm)), 6)
    canvas = Canvas(rng, settings.size_irc, (slice_mm, pixel_mm, pixel_mm))
    findings = Findings(canvas, draw_chest(canvas))
    nodules = findings.nodules(*settings.nodules, settings.malignant_share)
    excluded = findings.specks()
    # A scan without nodules has look-alikes too: half of what one nodule brings.
    negatives = findings.look_alikes(round(settings.negatives_per_nodule * (len(nodules) or 0.5)))
    hu, padding = canvas.scan(float(rng.uniform(*settings.noise_hu)))
    x, y, z = (round(float(mm), 4) for mm in rng.uniform((-220, -220, -400), (-120, -120, 100)))
    grid = Grid(
        shape_irc=settings.size_irc,
        spacing_xyz=(pixel_mm, pixel_mm, slice_mm),
        origin_xyz=(x, y, z),
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def _refuse_foreign(out: Path, made_of: Any) -> None:
    """An empty folder, or one that was begun with the same settings, may be drawn into; no other."""
    if out.exists() and not out.is_dir():
        raise PhantomError(f"{out}: is a file; choose another folder")
    started = out / "phantom.started"
    if started.exists() and _read_json(started) != made_of:
        raise PhantomError(f"{out}: holds unfinished synthetic scans of other settings; delete it")
    if not started.exists() and out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise PhantomError(f"{out}: holds something that was not drawn here; choose another folder")


def _write_scan(
    folder: Path, series_uid: str, seed: int, number: int, settings: PhantomSettings
) -> dict[str, list[Any]]:
    """Draw and write one scan in a process of its own; returns its rows of the tables."""
    rng = np.random.default_rng([seed, number])
    phantom = draw_phantom(series_uid, rng, settings)
    _write_mhd(folder / f"{series_uid}.mhd", phantom)
    grid = phantom.grid
    names = ("annotations", "candidates", "excluded", "malignancy", "textures")
    rows: dict[str, list[Any]] = {name: [] for name in names}
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
        x, y, z = center.tolist()
        rows["textures"].append(
            Textured(
                series_uid=series_uid,
                center_xyz=(x, y, z),
                diameter_mm=nodule.diameter_mm,
                texture=nodule.texture,
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
    with whole_file(raw) as handle:
        handle.write(np.ascontiguousarray(phantom.hu, dtype="<i2").data)
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


def is_phantom_uid(series_uid: str) -> bool:
    """Whether a scan was drawn here: root, seed + 1, then 1, 24 digits and the scan's number."""
    return re.fullmatch(rf"{re.escape(UID_ROOT)}\.\d+\.1\d{{28,}}", series_uid) is not None


def _series_uid(seed: int, number: int) -> str:
    digits = "".join(str(d) for d in np.random.default_rng([seed, number, 7]).integers(0, 10, 24))
    return f"{UID_ROOT}.{seed + 1}.1{digits}{number:04d}"
