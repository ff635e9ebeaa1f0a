"""What `luna model lineage` and `luna model reproduce` say, and with which status they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from prefect.logging import disable_run_logger
from rich.console import Console

from flows import reproduce, temporary_server
from flows.show_lineage import show_reproduction
from lungml.home import Home
from tasks import registry, tracking
from tasks.manifest import described_at
from tasks.reproduction import ComparedStage, Reproduction
from tests.flows.environments import environment_of
from tests.tasks.toy_bundles import toy_bundle
from tests.tasks.toy_made import made_bundle

Luna = Callable[..., tuple[int, str, str]]
MADE, SILENT = "models:/luna/1", "models:/luna/2"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A bundle whose run says how it was made, and one of which nothing is said."""
    home = Home(tmp_path_factory.mktemp("models"))
    with pytest.MonkeyPatch.context() as patch, disable_run_logger():
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert [made_bundle(home), toy_bundle(home)] == [MADE, SILENT]
    return home


@pytest.fixture
def environment(home: Home) -> Iterator[None]:
    with environment_of(home, columns=160):
        yield


def test_a_bundle_is_told_as_a_tree(luna: Luna, home: Home) -> None:
    status, said, wrong = luna("model", "lineage", MADE)
    assert (status, wrong) == (0, "")
    lines = said.splitlines()
    assert lines[0] == f"{MADE}  of synthetic scans"
    assert lines[-1] == "Not for clinical use."
    assert max(map(len, lines)) <= 80  # also where there are more columns
    words = " ".join(said.replace("│", " ").split())
    fields = registry.read_bundle(home, MADE)
    for told in (
        "gate was not asked",
        "pipeline flow1",
        "thresholds nodule 0.5, malignant 0.5",
        "seed 4",
        "2 scans, 4 nodules, 2 malignant",
        f"segmentation {fields['segmentation']}",
        "its run says nothing of its data",  # a toy model's
        "luna_dir given",
    ):
        assert told in words, told
    assert "named after somebody" not in said
    assert str(described_at(home, MADE).card) in said.replace("│", "").replace("\n", "").replace(" ", "")


def test_a_file_that_is_another_one_now_is_noted(luna: Luna, home: Home) -> None:
    file = next(tracking.download_model(home, MADE).rglob("arch.json"))
    before = file.read_bytes()
    file.write_bytes(before + b" ")
    try:
        status, said, wrong = luna("model", "lineage", MADE)
    finally:
        file.write_bytes(before)
    assert (status, said.splitlines()[-1]) == (0, "Not for clinical use.")
    assert "arch.json is not the file that is listed" in wrong
    assert all(line.startswith("note: ") for line in wrong.splitlines())


def test_what_is_not_known_is_told(luna: Luna) -> None:
    status, said, _ = luna("model", "lineage", SILENT)
    assert status == 0
    words = " ".join(said.replace("│", " ").split())
    assert "nothing says which run made it" in words
    assert "card: none was written here" in words


def test_a_single_model_has_a_tree_too(luna: Luna, home: Home) -> None:
    uri = registry.read_bundle(home, MADE)["nodule"]
    status, said, _ = luna("model", "lineage", uri)
    assert (status, said.splitlines()[0]) == (0, uri)


def test_a_program_gets_all_of_it(luna: Luna, home: Home) -> None:
    status, said, _ = luna("model", "lineage", MADE, "--json")
    told = json.loads(said)
    assert (status, told["uri"], told["pipeline"]) == (0, MADE, "flow1")
    assert [one["member"] for one in told["members"]] == list(registry.BUNDLE_MEMBERS)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/luna/77", "error: models:/luna/77: no such bundle in"),
        ("models:/m-77", "error: models:/m-77: no such model in"),
        ("luna", "error: luna: is no bundle; give models:/luna/N"),
    ],
)
def test_what_is_not_there_is_one_line(luna: Luna, uri: str, message: str) -> None:
    status, said, wrong = luna("model", "lineage", uri)
    assert (status, said) == (1, "")
    assert wrong.startswith(message)
    assert len(wrong.splitlines()) == 1


def result(now: float) -> Reproduction:
    digest = {"sha256 of weights.safetensors": "ab"}
    stages = (
        ComparedStage(name="segmentation", then={**digest, "test/f1": 0.5}, now={**digest, "test/f1": 0.5}),
        ComparedStage(name="test", then={"test/cpm": 0.25}, now={"test/cpm": now}),
    )
    return Reproduction(uri=MADE, made="models:/luna/3", stages=stages, notes=("torch: 1 then, 2 now.",))


@pytest.mark.parametrize(("now", "status"), [(0.25, 0), (0.26, 1)])
def test_the_status_says_whether_all_is_equal(
    luna: Luna, monkeypatch: pytest.MonkeyPatch, now: float, status: int
) -> None:
    asked: list[object] = []

    def run(*arguments: object, **also: object) -> Reproduction:
        asked.append((arguments, also))
        return result(now)

    monkeypatch.setattr(reproduce, "reproduce", run)
    monkeypatch.setattr(temporary_server, "ready_server", lambda: asked.append("server"))
    ended, said, _ = luna("model", "reproduce", MADE, "--luna-dir", "/data", "--any-code")
    assert (ended, asked) == (
        status,
        ["server", ((MADE, "/data", None, None, None), {"any_code": True})],
    )
    assert said.splitlines()[-1] == "Not for clinical use."


@pytest.mark.parametrize(
    ("uri", "message"),
    [(SILENT, f"error: {SILENT}: nothing says which run made it"), ("luna", "error: luna: is no bundle")],
)
def test_what_cannot_be_reproduced_is_said_before_any_server_starts(
    luna: Luna, monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    monkeypatch.setattr(temporary_server, "ready_server", lambda: pytest.fail("a server for nothing"))
    status, said, wrong = luna("model", "reproduce", uri)
    assert (status, said, len(wrong.splitlines())) == (1, "", 1)
    assert wrong.startswith(message)


def test_a_reproduction_is_told_stage_by_stage() -> None:
    console = Console(record=True, width=80, highlight=False, markup=False)
    show_reproduction(result(0.26), console)
    said = console.export_text()
    rows = [line.split() for line in said.splitlines()]
    assert ["segmentation", "2", "2", "the", "same"] in rows
    assert ["test", "1", "0"] in rows
    assert ["test/cpm", "0.25", "0.26"] in rows
    assert "note: torch: 1 then, 2 now." in said
    assert "1 of 3 weights, settings and metrics differ, first in test" in said
