"""Stores on an object store: a local S3 server stands in for it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import numpy as np
import pytest

from lungml import groups, store
from lungml.geometry import Grid
from lungml.home import Home
from lungml.remote import RemoteError, RemoteFolder

GRID = Grid(shape_irc=(20, 30, 40), spacing_xyz=(0.7, 0.8, 2.5), origin_xyz=(-1.5, 2, -340.045))
HU = np.random.default_rng(0).integers(-3024, 3000, GRID.shape_irc, dtype=np.int16)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    # In a process of its own: zarrs holds Python's lock while it waits for an answer.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", address.rpartition(":")[2]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT": address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        wait_for(address)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="luna")
        yield "s3://luna/stores"
    server.terminate()
    server.wait()


def wait_for(address: str) -> None:
    for _ in range(300):
        try:
            httpx.get(address)
        except httpx.ConnectError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the S3 server did not start")


@pytest.fixture
def scan(bucket: str, request: pytest.FixtureRequest) -> RemoteFolder:
    path = RemoteFolder(f"{bucket}/{request.node.name}") / "1.2.3.zarr"
    store.write_scan(path, HU, GRID, key={"v": 1})
    return path


def test_a_scan_and_its_mask_come_back_exactly(scan: RemoteFolder) -> None:
    assert groups.is_current(scan, {"v": 1})
    assert not groups.is_current(scan, {"v": 2})
    np.testing.assert_array_equal(store.read_volume(scan), HU)
    assert store.read_grid(scan) == GRID
    box = (slice(1, 4), slice(0, 2), slice(28, 30))
    store.write_mask(scan, "mask", GRID.shape_irc, [(box, np.ones((3, 2, 2), bool))], key={"rule": "r"})
    mask = store.read_mask(scan, "mask")
    assert mask[box].all()
    assert mask.sum() == 12
    assert groups.is_current(scan, {"v": 1})
    assert [location.name for location in groups.groups_in(RemoteFolder(scan.url.rpartition("/")[0]))] == ["1.2.3.zarr"]


def test_what_lost_its_description_or_a_chunk_is_no_store(scan: RemoteFolder) -> None:
    (scan / "volume" / "c" / "0" / "0").remove()
    assert not groups.is_current(scan, {"v": 1})
    assert groups.find_damage(scan) == "volume lost or gained bytes"
    store.write_scan(scan, HU, GRID, key={"v": 2})
    assert groups.is_current(scan, {"v": 2})
    groups.remove(scan)
    with pytest.raises(groups.StoreError, match="no store there"):
        store.read_volume(scan)


def test_a_run_that_is_disturbed_by_another_finishes_nothing(
    scan: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another run begins anew while this one writes: its first deed is to remove what is there.
    real = groups._write_chunks

    def disturbed(stored: object, array: np.ndarray, location: RemoteFolder) -> None:
        real(stored, array, location)  # type: ignore[arg-type]
        (location / "c" / "1").remove()

    monkeypatch.setattr(groups, "_write_chunks", disturbed)
    with pytest.raises(groups.StoreError, match="another run is writing it"):
        store.write_scan(scan, HU, GRID, key={"v": 2})
    assert not groups.is_current(scan, {"v": 2})


def test_the_description_comes_last(scan: RemoteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    # A run that is killed between chunks leaves no store, neither the old nor half of the new one.
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(groups, "_description", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write_scan(scan, HU + 1, GRID, key={"v": 2})
    assert not groups.is_current(scan, {"v": 1})
    assert not groups.is_current(scan, {"v": 2})


def test_the_environment_puts_scans_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_HOME", str(tmp_path))
    monkeypatch.setenv("LUNA_SCANS", "s3://luna/stores/")
    home = Home.from_env()
    assert str(home.scans / "1.2.zarr") == "s3://luna/stores/1.2.zarr"
    assert home.crops == tmp_path / "crops"


@pytest.mark.parametrize(("url", "said"), [("nonsense://x", "not an object store's URL"), ("s3:/x", "not an object")])
def test_another_url_is_one_line(url: str, said: str) -> None:
    with pytest.raises(RemoteError, match=said) as caught:
        RemoteFolder(url).read("zarr.json")
    assert "\n" not in str(caught.value)
