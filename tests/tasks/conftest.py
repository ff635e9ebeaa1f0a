"""Toy scans of 24 x 48 x 48 voxels, tilted, whose nodules and negatives lie on whole voxels; no Prefect server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from prefect.logging import disable_run_logger

from lungml.geometry import Grid, irc_to_xyz
from lungml.home import Home
from lungml.luna import Excluded, Nodule
from tasks.truth import ScanTruth

GRID = Grid(
    shape_irc=(24, 48, 48),
    spacing_xyz=(1.0, 1.0, 1.5),
    origin_xyz=(-20, 10, 5),
    direction=((1, 0, 0), (0, 0.8, -0.6), (0, 0.6, 0.8)),
)
HEADER = """\
NDims = 3
TransformMatrix = 1 0 0 0 0.8 0.6 0 -0.6 0.8
Offset = -20 10 5
ElementSpacing = 1 1 1.5
DimSize = 48 48 24
ElementType = MET_SHORT
ElementDataFile = {uid}.raw
"""
MALIGNANT_IRC, BENIGN_IRC = (8, 14, 14), (16, 34, 30)
NEGATIVES_IRC = [(4, 40, 10), (12, 8, 40), (20, 12, 8), (12, 24, 42), (6, 38, 38), (20, 42, 14)]


def toy_hu(number: int) -> np.ndarray:
    """A body wall around lung, one bright ball of 10 mm and one dimmer ball of 6 mm; the noise differs by number."""
    hu = np.random.default_rng(number).normal(-850, 20, GRID.shape_irc)
    wall = [0, 1, 2, 3, -4, -3, -2, -1]
    hu[:, wall] = hu[:, :, wall] = 40
    axes = np.ogrid[tuple(slice(n) for n in GRID.shape_irc)]
    for center, radius_mm, value in ((MALIGNANT_IRC, 5, 60), (BENIGN_IRC, 3, -100)):
        squared = sum(((a - c) * mm) ** 2 for a, c, mm in zip(axes, center, GRID.spacing_irc))
        hu[squared <= radius_mm**2] = value
    return hu.astype("<i2")


def write_toy(folder: Path, uid: str, number: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{uid}.raw").write_bytes(toy_hu(number).tobytes())
    path = folder / f"{uid}.mhd"
    path.write_text(HEADER.format(uid=uid))
    return path


def at(center_irc: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = irc_to_xyz(center_irc, GRID).tolist()
    return (x, y, z)


def toy_truth(path: Path, split: str = "train") -> ScanTruth:
    """What the tables say of a toy scan: two nodules and six negatives."""
    uid = path.stem
    nodules = (
        Nodule(series_uid=uid, center_xyz=at(MALIGNANT_IRC), diameter_mm=10, malignant=True, ratings=(5, 4)),
        Nodule(series_uid=uid, center_xyz=at(BENIGN_IRC), diameter_mm=6, malignant=False, ratings=(1,)),
    )
    excluded = (Excluded(series_uid=uid, center_xyz=at((12, 24, 24)), diameter_mm=4),)
    return ScanTruth(
        series_uid=uid,
        path=path,
        split=split,  # type: ignore[arg-type]
        nodules=nodules,
        negatives_xyz=irc_to_xyz(NEGATIVES_IRC, GRID),
        excluded=excluded,
        findings_xyz=np.array([item.center_xyz for item in (*nodules, *excluded)]),
    )


@pytest.fixture(scope="session")
def toy() -> Callable[..., ScanTruth]:
    """Write a toy scan's files under a folder and say what is true of it: (folder, uid, split, number)."""

    def make(folder: Path, uid: str, split: str = "train", number: int = 0) -> ScanTruth:
        return toy_truth(write_toy(folder, uid, number), split)

    return make


@pytest.fixture(scope="session")
def grid() -> Grid:
    return GRID


@pytest.fixture(autouse=True, scope="module")
def no_prefect_run() -> Iterator[None]:
    """Task bodies log to the run that they are part of; here there is none."""
    with disable_run_logger():
        yield


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables: making them takes seconds, copying them none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("none")
    return path


@pytest.fixture(scope="session")
def new_home(database: Path) -> Callable[[Path], Home]:
    """A home under a folder, with an empty MLflow."""

    def make(folder: Path) -> Home:
        home = Home(folder / "artifacts")
        home.root.mkdir()
        shutil.copy(database, home.mlflow_db)
        return home

    return make


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Batches of two are too small to share: on a busy machine the threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def given_mlflow() -> Iterator[None]:
    """Leave the environment as it was found."""
    given = os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    if given is not None:
        os.environ["MLFLOW_TRACKING_URI"] = given


@pytest.fixture(autouse=True)
def own_mlflow() -> Iterator[None]:
    """Runs go to the home's database: MLflow writes the address in use into the environment, where we look for it."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def home(tmp_path: Path, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path)
