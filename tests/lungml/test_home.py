"""Artifacts lie in one absolute place, and asking where makes nothing."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from lungml.errors import FileError
from lungml.home import Home
from lungml.remote import RemoteError

PLACES = [name for name, value in vars(Home).items() if isinstance(value, property)]


def test_the_environment_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_HOME", str(tmp_path / "elsewhere"))
    assert Home.from_env().root == tmp_path / "elsewhere"


@pytest.mark.parametrize("value", [None, ""])
def test_else_it_is_beside_the_projects_pyproject(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUNA_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("LUNA_HOME", value)
    project = Path(__file__).parents[2]
    assert (project / "pyproject.toml").exists()
    assert Home.from_env().root == project / "artifacts"


def test_a_copy_without_a_project_uses_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUNA_HOME", raising=False)
    monkeypatch.setattr("lungml.home.__file__", str(tmp_path / "site-packages" / "lungml" / "home.py"))
    monkeypatch.chdir(tmp_path)
    assert Home.from_env().root == tmp_path / "artifacts"


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_absolute_and_under_the_root(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = Home(Path("relative"))
    assert getattr(home, place).is_absolute()
    assert getattr(home, place).is_relative_to(tmp_path / "relative")


def test_a_home_keeps_its_place_when_the_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = Home(Path("relative"))
    monkeypatch.chdir("/")
    assert home.mlflow_db == tmp_path / "relative" / "mlflow.db"


def test_asking_makes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "new")
    assert len({getattr(home, place) for place in PLACES}) == len(PLACES)
    assert [field.name for field in fields(Home)] == ["root", "scans_url"]
    assert not home.root.exists()


def test_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home(Path("~/luna")).root == tmp_path / "luna"


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file: not a folder; name another place for artifacts with LUNA_HOME"):
        Home(tmp_path / "file")


@pytest.mark.parametrize("url", ["/data/scans", "s3://", "s3:/bucket", "bucket", "s3://my bucket"])
def test_what_is_no_url_of_an_object_store_is_said_at_once(url: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"LUNA_SCANS is .*; give one such as s3://bucket/luna"):
        Home(tmp_path, url)


def test_a_password_in_the_url_of_an_object_store_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="LUNA_SCANS holds a password") as caught:
        Home(tmp_path, "s3://somebody:hunter2@bucket/luna")
    assert "hunter2" not in str(caught.value)
    assert Home(tmp_path, "abfss://container@account.dfs.core.windows.net/luna").scans_url  # Azure's way to name both
