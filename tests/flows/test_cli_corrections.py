"""What the `luna corrections` commands say and do, and what corrections do to a real preparation."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.testing.utilities import prefect_test_harness

from flows import terminal
from flows.end_to_end import end_to_end
from flows.prepare import Prepared, prepare
from flows.reproduce import reproduce
from lungml import crop_cache, groups, recipes, store
from lungml.ct import read_scan
from lungml.frozen_split import freeze_split, frozen_patients
from lungml.geometry import irc_to_xyz
from lungml.home import Home
from lungml.luna import read_luna
from lungml.phantom import PhantomSettings, write_phantoms
from lungml.reading.correction_schema import check_given
from lungml.reading.corrections import CorrectionStoreError, add_versions, corrections_folder
from tasks import tracking
from tasks.corrections import add_files, list_corrections
from tasks.lineage import BundleLineage, lineage_of
from tasks.manifest import described_at
from tasks.runs import facts_of_version
from tests.flows.environments import environment_of
from tests.flows.test_end_to_end import STRIDE, states, tiny
from tests.lungml.reading.test_correction_schema import file, row
from tests.tasks.toy_bundles import toy_bundle

Luna = Callable[..., tuple[int, str, str]]
TRAIN, VAL = "1.2.840.113654.2.55.1", "1.2.840.113654.2.55.2"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """A home with a bundle, and its URI."""
    home = Home(tmp_path_factory.mktemp("corrected"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return home, toy_bundle(home)


@pytest.fixture
def home(bundle: tuple[Home, str]) -> Home:
    home, _ = bundle
    home.split_csv.write_text(f"series_uid,split\n{TRAIN},train\n{VAL},val\n")
    for path in (home.root / "corrections").glob("*"):
        path.unlink()
    return home


@pytest.fixture
def environment(home: Home) -> Iterator[None]:
    with environment_of(home, columns=200):
        yield


@pytest.fixture
def write(tmp_path: Path, bundle: tuple[Home, str]) -> Callable[..., Path]:
    """Write a file of corrections of the registered bundle: (name, rows, changes)."""

    def make(name: str, *rows: Any, **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(file(*rows, **{"bundle": bundle[1], "series_uid": TRAIN, **changes})))
        return path

    return make


def test_a_narrow_terminal_costs_no_word(
    luna: Luna, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    luna("corrections", "add", write("one.json", row(kind="reject"), series_uid=VAL, reader="a" * 32))
    lines = [line for line in luna("corrections", "list")[1].splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    words = " ".join(line.rstrip().split("  ")[-1].strip() for line in lines)
    assert "kept, not trained on (validation scan)" in words
    assert sum(line.count("a" * 4) for line in lines) >= 2


def test_corrections_are_added_listed_and_undone(
    luna: Luna, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 160)
    first = write("one.json", row(), row(kind="note", finding=None, text="[b]\nold"), reader="dr.b")
    held = write("two.json", row(kind="reject"), series_uid=VAL)
    status, said, wrong = luna("corrections", "add", first, held)
    assert status == 0
    assert said.splitlines() == [
        f"{first}: version 1, 2 corrections of {TRAIN} by dr.b",
        f"{held}: version 2, 1 correction of {VAL} by r.one_2-x, a val scan: kept, not trained on",
    ]
    assert wrong.count("was not checked") == 2

    status, said, _ = luna("corrections", "add", first)
    assert (status, said.strip()) == (0, f"{first}: added already, as version 1")
    status, said, wrong = luna("corrections", "undo", "1.1")
    assert (status, wrong) == (0, "")
    assert said == "version 3 undoes 1.1; to bring it back: luna corrections undo 3\n"

    status, said, _ = luna("corrections", "list")
    assert status == 0
    cells = [line.split("  ") for line in said.splitlines() if line.strip()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in cells][2:]
    uri = rows[0][4]
    assert rows == [
        ["1.1", "…654.2.55.1", "train", "dr.b", uri, "accept 12", "undone by version 3"],
        ["1.2", "…654.2.55.1", "train", "dr.b", uri, "note", "a note, kept"],
        ["2.1", "…654.2.55.2", "val", "r.one_2-x", uri, "reject 12", "kept, not trained on (validation scan)"],
        ["3", "undoes 1.1", "stands"],
    ]
    _, said, _ = luna("corrections", "list", "--json")
    told = json.loads(said)
    assert [one["version"] for one in told] == ["1.1", "1.2", "2.1", "3"]
    assert told[1]["text"] == "[b]\nold"
    assert told[2]["uses"] == ["held_out"]

    assert luna("corrections", "undo", "3")[0] == 0
    assert "used as positive" in luna("corrections", "list")[1]
    assert luna("corrections", "undo", "1")[0] == 0
    _, said, _ = luna("corrections", "add", first)
    assert "added already, as version 1, which version 5 undid; luna corrections undo 5 brings it back" in said


def test_a_refused_file_costs_only_itself(luna: Luna, write: Callable[..., Path], home: Home, tmp_path: Path) -> None:
    bad = write("bad[x].json", row(), row(label="?"))
    unknown = write("bundle.json", row(), bundle="models:/luna/99")
    good = write("good.json", row(), reader="")
    status, said, wrong = luna("corrections", "add", bad, tmp_path / "none.json", unknown, good, "--reader", "me")
    assert status == 1
    assert said.splitlines() == [f"{good}: version 1, 1 correction of {TRAIN} by me"]
    refused = [line for line in wrong.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 3
    assert refused[0] == f'refused: {bad}: correction 2: label is "?", not one of benign, malignant or null'
    assert refused[1].endswith("none.json: No such file or directory")
    assert "models:/luna/99: no such bundle in " in refused[2]
    assert len(list((home.root / "corrections").glob("*.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("undo", "x"), 2, "is no VERSION or VERSION.N"),
        (("undo", "0"), 2, "is no VERSION or VERSION.N"),
        (("undo", "7"), 1, "there is no version 7 of the corrections, only 1"),
        (("undo", "1.9"), 1, "version 1 has no correction 9, only 1"),
        (("add", "x.json", "--reader", "a b"), 1, "x.json"),
    ],
)
def test_what_a_person_gets_wrong_is_a_line(
    luna: Luna, write: Callable[..., Path], arguments: tuple[str, ...], status: int, words: str
) -> None:
    luna("corrections", "add", write("one.json", row()))
    ended, _, wrong = luna("corrections", *arguments)
    assert ended == status
    assert words in " ".join(wrong.replace("│", " ").split())


def test_nothing_is_listed_as_nothing_and_damage_as_a_line(luna: Luna, home: Home, write: Callable[..., Path]) -> None:
    assert luna("corrections", "list")[1].startswith("no corrections are kept yet")
    assert json.loads(luna("corrections", "list", "--json")[1]) == []
    luna("corrections", "add", write("one.json", row()), write("two.json", row(text="x")))
    (home.root / "corrections" / "000001.json").unlink()
    for command in ("list", "add", "undo"):
        arguments = {"list": (), "add": (write("three.json"),), "undo": ("2",)}[command]
        status, _, wrong = luna("corrections", command, *arguments)
        assert status == 1
        assert wrong.strip().endswith("000001.json: missing, though version 2 is there; restore it from a copy")
    assert [path.name for path in (home.root / "corrections").glob("*.json")] == ["000002.json"]


# the flow


def content(home: Home) -> dict[str, str]:
    """Every file of the stores and crops, by name: the digest of its bytes."""
    return {
        str(path.relative_to(home.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in (home.scans, home.crops)
        for path in Path(str(folder)).rglob("*")
        if path.is_file()
    }


def labels_of(prepared: Prepared, uid: str) -> list[int]:
    (scan,) = (scan for scan in prepared.scans if scan.series_uid == uid)
    return groups.map_array(scan.crops, "labels").tolist()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_correction_changes_the_next_training_set_and_nothing_else(
    bundle: tuple[Home, str], home: Home, environment: None, tmp_path: Path
) -> None:
    home.split_csv.unlink()
    luna_dir = tmp_path / "luna16"
    write_phantoms(luna_dir, scans=6, seed=3, settings=PhantomSettings(size_irc=(40, 96, 96)), workers=1)
    with prefect_test_harness(server_startup_timeout=180):

        def prepared(version: int | None = None) -> Prepared:
            return prepare(str(luna_dir), recipe="demo", val_stride=3, corrections=version)

        first, before, split_csv = prepared(), content(home), home.split_csv.read_bytes()
        splits = frozen_patients(home.split_csv)[0]
        uids = {name: [uid for uid in sorted(splits) if splits[uid] == name] for name in ("train", "val", "test")}
        assert {name: len(chosen) for name, chosen in uids.items()} == {"train": 2, "val": 2, "test": 2}
        assert first.corrections["version"] == 0

        # Of one training, one validation and one test scan: a nodule added in the middle of the lung, and one rejected.
        chosen = [uids[name][0] for name in uids]
        files = []
        for uid in chosen:
            grid = store.read_grid(home.scans / f"{uid}.zarr")
            places = [irc_to_xyz(np.array(irc), grid).tolist() for irc in ((20, 48, 24), (20, 30, 70))]
            added = row(kind="add", finding=None, center_xyz=places[0], diameter_mm=6)
            rejected = row(kind="reject", center_xyz=places[1], diameter_mm=3)
            files.append(tmp_path / f"{uid}.json")
            held = file(added, rejected, series_uid=uid, bundle=bundle[1])
            files[-1].write_text(json.dumps(held))
        assert [(one.problem, one.note, one.split) for one in add_files(home, files)] == [("", "", s) for s in uids]

        second, after = prepared(), content(home)
        assert second.corrections == {
            "version": 3, "positives": 1, "negatives": 1, "labels": 0, "disputed": 0, "held_out": 4,
        }  # fmt: skip
        assert home.split_csv.read_bytes() == split_csv
        corrected = chosen[0]
        for one, other in zip(first.scans, second.scans, strict=True):
            assert (one == other) == (one.series_uid != corrected)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert changed
        assert all(corrected in name for name in changed)
        assert any("/mask/" in name for name in changed)
        assert not any("/volume/" in name.removeprefix("scans/").replace("/mask/volume", "") for name in changed)
        was, now = labels_of(first, corrected), labels_of(second, corrected)
        assert now.count(crop_cache.UNJUDGED) == now.count(crop_cache.REJECTED) == 1
        assert [label for label in now if label < 3].count(0) == was.count(0)
        assert store.read_mask(home.scans / f"{corrected}.zarr", "mask")[20, 48, 24] == 1

        # The list knows what the tables say; an older state is had by its number, to the last byte.
        rows, note = list_corrections(home)
        assert note == ""
        assert [one.outcome for one in rows] == [
            "used as positive, malignancy unknown",
            "used as hard negative",
            *["kept, not trained on (validation scan)"] * 2,
            *["kept, not trained on (test scan)"] * 2,
        ]
        assert prepared(0).scans == first.scans
        assert content(home) == before
        with pytest.raises(CorrectionStoreError, match="no version 4"):
            prepared(4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_says_which_corrections_it_used_and_is_made_again_with_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, luna_dir = Home(tmp_path / "artifacts"), tmp_path / "luna16"
    monkeypatch.setenv("LUNA_HOME", str(home.root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(recipes.RECIPES, "demo", tiny)
    monkeypatch.setattr(tracking, "git_commit", lambda: "c0ffee" + 34 * "0")
    settings = PhantomSettings(size_irc=(40, 96, 96), nodules=(3, 4), malignant_share=0.5, negatives_per_nodule=6)
    write_phantoms(luna_dir, scans=9, seed=3, settings=settings, workers=1)
    splits = freeze_split(read_luna(luna_dir).scans, STRIDE, home.split_csv)
    training, held_out = (min(uid for uid, split in splits.items() if split == name) for name in ("train", "test"))

    data = read_luna(luna_dir)

    def correct(uid: str, **more: Any) -> None:
        """Of the place that is farthest from all that the tables know of the scan."""
        grid = read_scan(data.scans[uid]).grid
        known = [one.center_xyz for one in (*data.nodules, *data.excluded) if one.series_uid == uid]
        spots = irc_to_xyz(np.argwhere(np.ones((3, 4, 4))) * (10, 16, 16) + (10, 24, 24), grid)
        apart = np.linalg.norm(spots[:, None] - np.array(known)[None], axis=2).min(axis=1)
        assert apart.max() > 10
        place = spots[apart.argmax()].tolist()
        held = file(row(**{"center_xyz": place, "finding": 3, "diameter_mm": 4, **more}), series_uid=uid)
        add_versions(corrections_folder(home), [check_given(held)])

    correct(training, kind="add", finding=None)
    correct(held_out, kind="reject")
    used = {"version": 2, "positives": 1, "negatives": 0, "labels": 0, "disputed": 0, "held_out": 1}
    expected = {f"corrections/{name}": float(count) for name, count in used.items()}
    with prefect_test_harness(server_startup_timeout=180):
        made = end_to_end(str(luna_dir), val_stride=STRIDE)
        lineage = lineage_of(home, made.trained.bundle_uri)
        assert isinstance(lineage, BundleLineage)
        assert lineage.parameters["corrections"] == 2
        every = [lineage.run, *(model.run for _, model in lineage.members)]
        assert len(every) == 5
        for run in every:
            assert run is not None
            assert {name: value for name, value in run.metrics.items() if name.startswith("corrections/")} == expected

        # A label alone trains the malignancy models anew; the U-Net and the nodule classifier are kept.
        benign = next(one for one in data.nodules if one.series_uid == training and not one.malignant)
        place, size = list(benign.center_xyz), benign.diameter_mm
        correct(training, kind="relabel", center_xyz=place, diameter_mm=size, label="malignant")
        before = states()
        relabelled = end_to_end(str(luna_dir), val_stride=STRIDE)
        counted = {task: found - before.get(task, Counter()) for task, found in states().items()}
        assert counted["cache_crops"] == Counter(Cached=8, Completed=1)
        assert counted["mine_candidates"] == Counter(Cached=3, Completed=1)
        assert counted["train_segmentation"] == counted["train_classification"] == Counter(Cached=1)
        assert counted["train_malignancy"] == Counter(Completed=2)
        assert relabelled.trained.segmentation.uri == made.trained.segmentation.uri
        assert [one.uri for one in relabelled.trained.nodules] == [one.uri for one in made.trained.nodules]
        assert relabelled.trained.bundle_uri != made.trained.bundle_uri
        for summary, version in ((made, "2"), (relabelled, "3")):
            uri = summary.trained.bundle_uri
            assert facts_of_version(home, uri).tags["luna.corrections"] == version
            said = f"It learned from readers' corrections up to version {version}: 1 used as positives"
            assert said in described_at(home, uri).card.read_text()

        correct(training, kind="reject", diameter_mm=2)  # since then there is more: this would supersede the nodule
        again = reproduce(made.trained.bundle_uri, luna_dir=str(luna_dir))
        assert again.equal, again.words
