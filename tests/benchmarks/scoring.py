"""How long does the official score of LUNA16 take, all included, and what does a plain reading of its rules say?"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import roc_curve

from lungml.froc import FPS_PER_SCAN, FrocResult, froc
from lungml.score import Mark, Place, ScoredFinding
from tests.benchmarks.measure import Row, Settings, compare

SCANS, MARKS, NODULES, EXCLUDED, BOOTSTRAPS = 888, 50_000, 1186, 35_192, 1000  # LUNA16's, and its bootstraps
SHARE = 8  # the plain way takes minutes on all of them: the peer gets a share of the scans and of the bootstraps


@dataclass(frozen=True)
class Sphere:
    """A nodule or an excluded finding."""

    center_xyz: tuple[float, float, float]
    diameter_mm: float


Scene = tuple[dict[str, list[ScoredFinding]], dict[str, list[Sphere]], dict[str, list[Sphere]], list[str]]


@dataclass(frozen=True)
class PlainFroc:
    """What the plain way says, see `lungml.froc.FrocResult`."""

    points: list[tuple[float, float]]
    sensitivity_at: list[float]
    band_low: list[float]
    band_high: list[float]
    counts: dict[str, int]


def froc_row(settings: Settings) -> list[Row]:
    """The official score, from marks to band; all of LUNA16's size is timed for the note, without its peer."""
    scene, bootstraps = _scene(SHARE), BOOTSTRAPS // SHARE
    whole, start = _scene(1), time.perf_counter()
    _ours(whole, BOOTSTRAPS)
    seconds = time.perf_counter() - start
    return [
        compare(
            f"official score, {SCANS // SHARE} scans, {MARKS // SHARE} marks, {bootstraps} bootstraps",
            "its rules in plain Python, roc_curve on every resample",
            partial(_ours, scene, bootstraps),
            partial(_theirs, scene, bootstraps),
            disagree=differ,
            repeats=settings.repeats,
            note="the same resamples: curve, counts and bands agree to 1e-9; "
            f"{SCANS} scans, {MARKS} marks and {BOOTSTRAPS} bootstraps take us {seconds:.2f} s",
        )
    ]


def _scene(share: int) -> Scene:
    return random_scene(
        np.random.default_rng(1),
        scans=SCANS // share,
        marks=MARKS // share,
        nodules=NODULES // share,
        excluded=EXCLUDED // share,
    )


def _ours(scene: Scene, bootstraps: int) -> FrocResult:
    return froc(*scene, bootstraps=bootstraps, generator=np.random.default_rng(2))


def _theirs(scene: Scene, bootstraps: int) -> PlainFroc:
    return plain_froc(*scene, bootstraps=bootstraps, generator=np.random.default_rng(2))


def random_scene(rng: np.random.Generator, *, scans: int, marks: int, nodules: int, excluded: int) -> Scene:
    """Scans of 300 mm: nine nodules in ten have a mark or two near them, marks elsewhere are less sure.

    Probabilities have four digits, so that some are equal. Every fourth excluded finding has no diameter (-1), and a
    few scans have no marks at all.
    """
    series = [f"1.3.6.{number}" for number in range(scans)]
    findings: dict[str, list[ScoredFinding]] = {uid: [] for uid in series}
    nodule_of: dict[str, list[Sphere]] = {uid: [] for uid in series}
    excluded_of: dict[str, list[Sphere]] = {uid: [] for uid in series}
    answered = series[: max(1, scans - scans // 20)]

    def mark(uid: str, center: np.ndarray, prob: float) -> None:
        x, y, z = center.tolist()
        findings[uid].append(ScoredFinding(center_xyz=(x, y, z), prob_nodule=round(prob, 4)))

    placed = 0
    for number in rng.integers(scans, size=nodules).tolist():
        uid, center, diameter = series[number], rng.uniform(-150, 150, 3), float(rng.uniform(3, 30))
        nodule_of[uid].append(Sphere(tuple(center.tolist()), diameter))
        for _ in range(int(rng.choice([0, 1, 2], p=[0.1, 0.6, 0.3])) if uid in answered and placed < marks else 0):
            mark(uid, center + rng.normal(0, diameter / 5, 3), rng.beta(3, 1))
            placed += 1
    for number in rng.integers(scans, size=excluded).tolist():
        diameter = float(rng.choice([-1, *rng.uniform(3, 20, 3)]))
        excluded_of[series[number]].append(Sphere(tuple(rng.uniform(-150, 150, 3).tolist()), diameter))
    for number in rng.integers(len(answered), size=max(0, marks - placed)).tolist():
        uid, places = series[number], excluded_of[series[number]]
        near = bool(places) and rng.random() < 0.1
        center = np.array(places[0].center_xyz) + rng.normal(0, 2, 3) if near else rng.uniform(-150, 150, 3)
        mark(uid, center, rng.beta(0.7, 3))
    return findings, nodule_of, excluded_of, series


def plain_froc(
    findings: Mapping[str, Sequence[Mark]],
    nodules: Mapping[str, Sequence[Place]],
    excluded: Mapping[str, Sequence[Place]],
    series_uids: Sequence[str],
    *,
    bootstraps: int,
    generator: np.random.Generator,
) -> PlainFroc:
    """LUNA16's rules one after the other, a mark and a place at a time; shares nothing with `lungml.froc`."""
    entries: dict[str, list[tuple[bool, float | None]]] = {}  # on a nodule?, probability (None: no mark)
    counts = dict.fromkeys(("hits", "misses", "false positives", "on excluded", "double hits", "beyond the limit"), 0)
    for uid in series_uids:
        marks = sorted(findings.get(uid, ()), key=lambda m: -m.prob_nodule)
        if len(marks) > 100:
            kept = [m for m in marks if m.prob_nodule > marks[100].prob_nodule]
            counts["beyond the limit"] += len(marks) - len(kept)
            marks = kept
        left = dict(enumerate(marks))
        entries[uid] = []
        for nodule in nodules.get(uid, ()):
            on_it = [number for number, m in enumerate(marks) if inside(nodule, m)]
            for number in on_it:
                left.pop(number, None)
            best = max((marks[number].prob_nodule for number in on_it), default=None)
            counts["misses" if best is None else "hits"] += 1
            counts["double hits"] += max(0, len(on_it) - 1)
            entries[uid].append((True, best))
        for place in excluded.get(uid, ()):
            ignored = [number for number, m in left.items() if inside(place, m)]
            counts["on excluded"] += len(ignored)
            for number in ignored:
                del left[number]
        counts["false positives"] += len(left)
        entries[uid] += [(False, m.prob_nodule) for m in left.values()]
    points = plain_curve(entries, series_uids)
    resampled = []
    for _ in range(bootstraps):
        drawn = [series_uids[i] for i in generator.integers(len(series_uids), size=len(series_uids)).tolist()]
        if any(on_nodule for uid in drawn for on_nodule, _ in entries[uid]):
            resampled.append(np.interp(FPS_PER_SCAN, *zip(*plain_curve(entries, drawn))))
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0).tolist() if resampled else ([], [])
    return PlainFroc(
        points=points,
        sensitivity_at=np.interp(FPS_PER_SCAN, *zip(*points)).tolist(),
        band_low=low,
        band_high=high,
        counts=counts,
    )


def inside(place: Place, mark: Mark) -> bool:
    """Nearer than the radius; a negative diameter means 10 mm."""
    diameter = 10.0 if place.diameter_mm < 0 else place.diameter_mm
    squared = sum((a - b) ** 2 for a, b in zip(place.center_xyz, mark.center_xyz))
    return squared < (diameter / 2) ** 2


def plain_curve(
    entries: Mapping[str, Sequence[tuple[bool, float | None]]], scans: Sequence[str]
) -> list[tuple[float, float]]:
    """False positives per scan and sensitivity at scikit-learn's ROC points; at least one nodule must be there."""
    entered = [entry for uid in scans for entry in entries[uid]]
    marks = [(on_nodule, prob) for on_nodule, prob in entered if prob is not None]
    nodules = sum(on_nodule for on_nodule, _ in entered)
    hits = sum(on_nodule for on_nodule, _ in marks)
    if not marks:
        return [(0.0, 0.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        false, true, _ = roc_curve(*zip(*marks), pos_label=True)
    # NaN without a false positive, where the challenge's script says 0, or without a hit, where nothing is ever found.
    fps = np.nan_to_num(false) * (len(marks) - hits) / len(scans)
    return list(zip(fps.tolist(), (np.nan_to_num(true) * hits / nodules).tolist()))


def differ(ours: FrocResult, theirs: PlainFroc) -> str:
    """What keeps both from saying the same; nothing where they do."""
    counted = {
        "hits": ours.true_positives,
        "misses": ours.misses,
        "false positives": ours.false_positives,
        "on excluded": ours.ignored_on_excluded,
        "double hits": ours.ignored_double_hits,
        "beyond the limit": ours.ignored_beyond_limit,
    }
    if counted != theirs.counts:
        return f"counts {counted} and {theirs.counts}"
    pairs = {
        "points": (list(zip(ours.fps_per_scan, ours.sensitivity)), theirs.points),
        "sensitivities": (ours.sensitivity_at, theirs.sensitivity_at),
        "CPM": (ours.cpm, sum(theirs.sensitivity_at) / len(FPS_PER_SCAN)),
        "lower edge": (ours.band_low, theirs.band_low),
        "upper edge": (ours.band_high, theirs.band_high),
    }
    for name, (one, other) in pairs.items():
        if np.shape(one) != np.shape(other):
            return f"{name}: {np.shape(one)} and {np.shape(other)}"
        if not np.allclose(one, other, rtol=0, atol=1e-9):
            return f"{name}: {one} and {other}"
    return ""
