"""Where do the scans lie that a home was last prepared from?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lungml.errors import FileError
from lungml.files import write_text_atomic
from lungml.home import Home


@dataclass(frozen=True, kw_only=True)
class DataFolders:
    """A tree of scans in LUNA16's layout; `tables_dir` is None where its tables lie in `luna_dir`."""

    luna_dir: Path
    tables_dir: Path | None = None


def remember_folders(home: Home, folders: DataFolders) -> None:
    """Keep the folders in the home, as absolute paths; those of an earlier preparation are forgotten."""
    tables = folders.tables_dir
    said = {"luna_dir": str(folders.luna_dir.absolute()), "tables_dir": str(tables.absolute()) if tables else None}
    write_text_atomic(home.data_json, json.dumps(said, indent=1) + "\n")


def known_folders(home: Home) -> DataFolders:
    """The folders that the home was last prepared from, all of them still there.

    Raises:
        FileError: nothing was prepared yet, a folder is gone, or the file that names them is damaged.
    """
    advice = "give the folder of the scans with --luna-dir"
    file = home.data_json
    try:
        said = json.loads(file.read_text())
        luna_dir, tables_dir = said["luna_dir"], said["tables_dir"]
        folders = DataFolders(luna_dir=Path(luna_dir), tables_dir=Path(tables_dir) if tables_dir else None)
    except FileNotFoundError:
        raise FileError(home.root, "no scans were prepared here yet", f"{advice}, or run luna data prepare") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(file, "damaged", f"{advice}, or run luna data prepare again") from error
    for folder in filter(None, (folders.luna_dir, folders.tables_dir)):
        if not folder.is_dir():
            raise FileError(folder, "gone, though scans were prepared from here", f"{advice}, where they lie now")
    return folders
