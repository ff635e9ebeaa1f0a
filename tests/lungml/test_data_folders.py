"""A home tells where its scans were last prepared from, and what to do when that is no longer so."""

from __future__ import annotations

from pathlib import Path

import pytest

from lungml.data_folders import DataFolders, known_folders, remember_folders
from lungml.errors import FileError
from lungml.home import Home


@pytest.fixture
def luna_dir(tmp_path: Path) -> Path:
    (tmp_path / "luna16").mkdir()
    return tmp_path / "luna16"


def test_the_last_folders_are_known_from_anywhere(
    luna_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, tables = Home(tmp_path / "home"), tmp_path / "tables"
    tables.mkdir()
    remember_folders(home, DataFolders(luna_dir=luna_dir, tables_dir=tables))
    assert known_folders(home) == DataFolders(luna_dir=luna_dir, tables_dir=tables)
    monkeypatch.chdir(tmp_path)
    remember_folders(home, DataFolders(luna_dir=Path("luna16")))
    monkeypatch.chdir("/")
    assert known_folders(home) == DataFolders(luna_dir=luna_dir)


def test_what_is_not_known_is_said_in_one_line(luna_dir: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(FileError, match=r"home: no scans were prepared here yet; .*--luna-dir, or run luna data prep"):
        known_folders(home)
    assert not home.root.exists()
    remember_folders(home, DataFolders(luna_dir=luna_dir))
    luna_dir.rmdir()
    with pytest.raises(FileError, match=r"luna16: gone, though scans were prepared from here; .*--luna-dir"):
        known_folders(home)


@pytest.mark.parametrize("text", ["", "[]", '{"luna_dir": "/"}', '{"luna_dir": null, "tables_dir": null}', "\udcff"])
def test_a_damaged_file_is_said(text: str, tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.data_json.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FileError, match=r"data\.json: damaged; .*--luna-dir"):
        known_folders(home)
