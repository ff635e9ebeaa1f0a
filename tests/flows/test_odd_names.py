"""Names of files and folders that a shell would act on, or take for options, are only names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lungml.home import Home
from lungml.phantom import PhantomSettings, write_phantoms
from lungml.quarantine import read_quarantine

PROJECT = Path(__file__).parents[2]
LUNA = [sys.executable, "-c", "from flows.cli import main; main()"]
ODD = "-rf 'one' \"two\" $(touch PWNED) `touch PWNED`; touch PWNED & | > PWNED\n../%s {recipe} é"
FOLDER = ODD.replace("/", " ")
HARMLESS = ("-rf", "é")  # as names of stores; no program is ever given them as arguments
REFUSED = ("$(touch PWNED)", "a\nb", "'; touch PWNED; '", "{recipe}%s", "[red]..", "~")


def luna(*arguments: str, home: Home, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "LUNA_"))}
    env |= {"LUNA_HOME": str(home.root), "PYTHONPATH": str(PROJECT)}
    return subprocess.run([*LUNA, *arguments], env=env, cwd=cwd, capture_output=True, text=True, errors="replace")


@pytest.mark.slow
def test_scans_and_folders_of_any_name_are_prepared_or_set_aside(tmp_path: Path) -> None:
    folder, home = tmp_path / FOLDER / "luna16", Home(tmp_path / FOLDER / "home")
    write_phantoms(folder, scans=3, seed=1, settings=PhantomSettings(size_irc=(40, 64, 64), nodules=(1, 2)), workers=1)
    good = sorted(path.stem for path in folder.rglob("*.mhd"))
    scan = next(folder.rglob("*.mhd"))
    for name in (*HARMLESS, *REFUSED):
        (scan.parent / f"{name}.mhd").write_text(scan.read_text())
    (folder / "seriesuids.csv").unlink()  # without it every file counts
    ended = luna("data", "prepare", "--luna-dir", str(folder), "--recipe", "demo", home=home, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name.removesuffix(".zarr") for path in Path(str(home.scans)).glob("[!.]*.zarr")) == sorted(
        [*good, *HARMLESS]
    )
    assert not [path for path in tmp_path.rglob("*") if path.name == "PWNED"]
    assert {row["series_uid"] for row in read_quarantine(home.quarantine_csv)} == set(REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$(touch PWNED); touch PWNED", "--help\n-rf '\""])
def test_a_folder_that_is_not_there_is_one_line_whatever_its_name(tmp_path: Path, name: str) -> None:
    ended = luna("data", "prepare", f"--luna-dir={name}", home=Home(tmp_path / "home"), cwd=tmp_path)
    assert ended.returncode == 1
    assert "no such folder" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "PWNED").exists()
