"""`luna evaluate --submission` prints LUNA16's score, as one JSON object or a table, and starts fast."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows import cli, cli_evaluate
from lungml.data_folders import DataFolders, remember_folders
from lungml.home import Home

PROJECT = Path(__file__).parents[2]
HEADER = "seriesuid,coordX,coordY,coordZ,probability"
# Runs the command, then tells on stderr which of the big packages it took along.
ALONE = """
import atexit, sys, typer
big = ("torch", "prefect", "mlflow")
atexit.register(lambda: print("imported:", [name for name in big if name in sys.modules], file=sys.stderr))
from flows import cli_evaluate
app = typer.Typer()
app.command()(cli_evaluate.evaluate)
app()
"""


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Two scans with a nodule each."""
    folder = tmp_path / "tables"
    folder.mkdir()
    columns = "seriesuid,coordX,coordY,coordZ,diameter_mm"
    (folder / "annotations.csv").write_text(f"{columns}\n1.1,0,0,0,10\n1.2,0,0,0,10\n")
    (folder / "annotations_excluded.csv").write_text(f"{columns}\n1.2,90,0,0,-1\n")
    (folder / "seriesuids.csv").write_text("1.1\n1.2\n")
    return folder


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """One nodule of two found, and found once more at the same place; no false positive."""
    path = tmp_path / "marks.csv"
    path.write_text(f"{HEADER}\n1.1,1,0,0,0.9\n1.1,1,0,0,0.2\n1.2,90,0,0,0.8\n")
    return path


def command(*words: object) -> Any:
    app = typer.Typer()
    app.command()(cli_evaluate.evaluate)
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(word) for word in words])


def test_stdout_is_one_json_object_and_nothing_big_is_imported(tables: Path, marks: Path, tmp_path: Path) -> None:
    env = {**os.environ, "LUNA_HOME": str(tmp_path / "home"), "PYTHONPATH": str(PROJECT)}
    words = ["--submission", str(marks), "--luna-dir", str(tables), "--json", "--seed", "3", "--bootstraps", "20"]
    done = subprocess.run([sys.executable, "-c", ALONE, *words], env=env, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert (said["cpm"], said["sensitivities"]["0.125"], len(said["sensitivity_at"])) == (0.5, 0.5, 7)
    assert (said["scans"], said["nodules"], said["true_positives"], said["misses"]) == (2, 2, 1, 1)
    assert (said["marks"], said["false_positives"], said["ignored_on_excluded"]) == (3, 0, 1)
    assert (said["duplicate_marks"], said["ignored_double_hits"]) == (1, 1)
    assert (said["seed"], said["bootstraps"], said["submission"]) == (3, 20, "marks.csv")
    note, imported = done.stderr.splitlines()
    assert note.startswith("note: 1 marks repeat the place of another one")
    assert imported == "imported: []"
    assert not (tmp_path / "home").exists()


def test_a_table_is_for_people(tables: Path, marks: Path) -> None:
    told = command("--submission", marks, "--luna-dir", tables, "--bootstraps", 0).stdout
    assert re.search(r"8\s+0\.5000\s*\n", told)
    assert re.search(r"CPM\s+0\.5000\s*\n", told)
    assert "2 nodules in 2 scans: 1 with a mark, 1 without" in told
    assert "3 marks: 0 false positives, 1 beside a more probable one on a nodule, 1 on excluded findings" in told
    assert "resamples" not in told
    assert "Not for clinical use." in told
    told = command("--submission", marks, "--luna-dir", tables).stdout
    assert "95 % band" in told
    assert "Bands are over 1000 resamples of whole scans, seed 0." in told


def test_the_tables_may_be_those_of_the_home(
    tables: Path, marks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUNA_HOME", str(tmp_path / "home"))
    assert "no scans were prepared here yet" in str(command("--submission", marks).exception)
    remember_folders(Home.from_env(), DataFolders(luna_dir=tmp_path, tables_dir=tables))
    for options in ((), ("--tables", tables), ("--luna-dir", tmp_path, "--tables", tables)):
        done = command("--submission", marks, "--json", *options)
        assert json.loads(done.stdout)["cpm"] == 0.5


def test_a_mark_in_an_unknown_series_is_one_line_and_exit_1(
    tables: Path, marks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with marks.open("a") as handle:
        handle.write("9.9,0,0,0,1\n")
    words = ["luna", "evaluate", "--submission", str(marks), "--luna-dir", str(tables), "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (1, "")
    (line,) = said.err.splitlines()
    assert line.startswith(f"error: {marks}: 1 marks are in series that seriesuids.csv does not list, the first")
    assert json.loads(command(*words[2:], "--ignore-unknown").stdout)["unknown_marks"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--submission", "marks.csv", "models:/luna/1", "--split", "val"), "leave out BUNDLE, --split"),
        (("--submission", "marks.csv", "--malignancy", "models:/m-1"), "leave out --malignancy"),
        (("--bootstraps", "0"), "this belongs to --submission: leave out --bootstraps"),
        (("models:/luna/1", "--ignore-unknown"), "leave out --ignore-unknown"),
        (("models:/luna/1", "--split", "half"), "--split 'half' is none of validation, val, test, train, all"),
        (("--segmentation", "models:/m-1"), "--classification, --malignancy is missing"),
        (("models:/luna/1", "--grouping", "report"), "--grouping is for loose models"),
        (("--submission", "marks.csv", "--bootstraps", "-1"), "Invalid value for '--bootstraps'"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(words: tuple[str, ...], said: str) -> None:
    refused = command(*words)
    assert refused.exit_code == 2
    assert said in " ".join(refused.output.replace("│", " ").split())
