"""Where are the documents' commands run: which home, which code, which scans, which environment?"""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lungml.files import write_text_atomic
from lungml.phantom import PhantomSettings, write_phantoms
from tests.docs.commands import PROJECT, words_of
from tests.docs.given import write_given
from tests.docs.plan import PLACES, Step, fill
from tests.drills.programs import MARK, clean_environment, free_port

CODE = ("flows", "tasks", "lungml", "prefect.yaml", "pyproject.toml", "constraints.txt", "Makefile")
OTHER = PhantomSettings(size_irc=(40, 96, 96), nodules=(3, 4), malignant_share=0.5, negatives_per_nodule=6)
LEFT_OUT = shutil.ignore_patterns("__pycache__")


class Place:
    """A folder for everything that the commands read and write; nothing outside it is touched.

    The code is a copy: `luna up` writes its address beside it, and an edit meanwhile disturbs nothing.

    Args:
        folder: absolute; what is there already is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.code, self.home = folder, folder / "code", folder / "home"
        self.mark = str(folder)
        self.known: dict[str, Any] = {
            "scans": folder / "luna16",
            "other": folder / "other",
            "scratch": folder / "scratch",
            "code": self.code,
            "home": self.home,
            "prefect_port": free_port(),
            "mlflow_port": free_port(),
        }

    def make_ready(self) -> None:
        """Copy the code and write what a user would bring along."""
        for name in CODE:
            source, target = PROJECT / name, self.code / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=LEFT_OUT, dirs_exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        (self.code / "artifacts").mkdir(exist_ok=True)
        shutil.copy2(PROJECT / "artifacts" / "README.md", self.code / "artifacts")
        for part in ("scratch", "user"):
            (self.folder / part).mkdir(exist_ok=True)
        self.known |= write_given(self.folder / "given", sys.executable)
        write_phantoms(self.known["other"], scans=3, seed=7, settings=OTHER, workers=1)
        self._look()
        self.known |= self.kept()

    def keep(self, found: Mapping[str, str]) -> None:
        """Let later steps, and later runs in this folder, know what a command said."""
        write_text_atomic(self._kept, json.dumps({**self.kept(), **found}))
        self.known |= found

    def kept(self) -> dict[str, str]:
        """What commands in this folder have said so far."""
        return json.loads(self._kept.read_text()) if self._kept.exists() else {}

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a command: this home and this code, nothing of the user's."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        base = {"HOME": str(self.folder / "user"), "PYTHONPATH": str(self.code), "LUNA_HOME": str(self.home)}
        return clean_environment(PATH=path, **base, **{MARK: self.mark}, **more)

    def words(self, step: Step) -> tuple[dict[str, str], list[str]]:
        """(What the command sets in the environment, its words), placeholders filled in."""
        self._look()
        given, typed = words_of(step.runs or step.command)
        assigned = {name: self._filled(step.places.get(value, value)) for name, value in given.items()}
        words = [put for word in typed for put in self._word(word, step.places)]
        return assigned, [*words, *shlex.split(self._filled(step.also))]

    def _word(self, word: str, places: Mapping[str, str]) -> list[str]:
        if word in places:
            return shlex.split(self._filled(places[word]))
        if word in PLACES:
            return [self._filled(PLACES[word])]
        for place, value in {**PLACES, **places}.items():  # within a word: `segmentation=models:/m-...`, `/data/x/y`
            if len(place) > 3 and not word.startswith("--"):
                word = word.replace(place, value)
        return [self._filled(word)]

    def _look(self) -> None:
        """Name two of the scans with nodules, and a nodule of the first, once they were drawn."""
        tree = Path(self.known["scans"])
        table = tree / "annotations.csv"
        if not table.exists():
            return
        with table.open(newline="") as handle:
            places = {row[0]: ",".join(row[1:4]) for row in csv.reader(handle)}
        first, second = [scan for scan in sorted(tree.rglob("*.mhd")) if scan.stem in places][:2]
        self.known |= {"scan": first, "uid": first.stem, "second_scan": second, "place": places[first.stem]}

    @property
    def _kept(self) -> Path:
        return self.folder / "known.json"

    def _filled(self, text: str) -> str:
        return fill(text, self.known)
