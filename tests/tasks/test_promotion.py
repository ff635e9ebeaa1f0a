"""Aliases move as one, are put back when they cannot, and say why they moved."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lungml.home import Home
from lungml.phantom import UID_ROOT
from tasks import promotion, registry, tracking
from tasks.promotion import alias_of, list_bundles, promote, resolve, rollback
from tasks.tracking import TrackingError
from tests.tasks.toy_bundles import STAGES, forget_aliases, old_bundle, toy_bundle, toy_fields, toy_model

DRAWN = f"{UID_ROOT}.1.1{'0' * 24}0001"
NAMES = ["luna", *(f"luna-{stage}" for stage in STAGES.values())]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    """Bundles 1 to 3 of real scans, the third with two nodule classifiers; 4 and 5 of synthetic ones. No alias."""
    home = new_home(tmp_path_factory.mktemp("promotion"))
    toy_bundle(home)
    toy_bundle(home)
    toy_bundle(home, nodule=[toy_model(home, "classification"), toy_model(home, "classification")])
    for _ in range(2):
        toy_bundle(home, origin="phantom")
    return home


@pytest.fixture
def home(stocked: Home) -> Home:
    """The bundles without aliases or history."""
    forget_aliases(stocked)
    return stocked


def bearing(home: Home) -> dict[str, dict[str, Any]]:
    """By registered model: alias -> the model's or bundle's own URI."""
    client = MlflowClient(tracking_uri=tracking.tracking_uri(home))
    found: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        aliases = client.get_registered_model(name).aliases
        found[name] = {
            alias: f"models:/luna/{number}" if name == "luna" else client.get_model_version(name, number).source
            for alias, number in aliases.items()
        }
    return found


def expected(home: Home, **bundles: int) -> dict[str, dict[str, Any]]:
    """What `bearing` gives when the bundles of these numbers bear these aliases, and nothing else does."""
    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    for alias, number in bundles.items():
        uri = f"models:/luna/{number}"
        found["luna"][alias] = uri
        fields = registry.read_bundle(home, uri)
        for member, stage in STAGES.items():
            for place, model in enumerate(registry.member_uris(fields, member)):
                found[f"luna-{stage}"][f"{alias}-{place + 1}" if place else alias] = model
    return found


def history(home: Home, number: int) -> tuple[str, ...]:
    return next(listed.history for listed in list_bundles(home) if listed.uri == f"models:/luna/{number}")


def test_the_first_champion_has_no_previous_one(home: Home) -> None:
    assert alias_of(home, "champion") is None
    moved = promote(home, "models:/luna/1", "champion", "beats the diameter")
    assert (moved.uri, moved.before) == ("models:/luna/1", None)
    assert bearing(home) == expected(home, champion=1)
    (line,) = history(home, 1)
    assert line == moved.line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ @champion by the gate: beats the diameter", line)


def test_all_four_models_move_as_one_and_ensembles_with_them(home: Home) -> None:
    promote(home, "models:/luna/3", "champion", "first")
    assert bearing(home) == expected(home, champion=3)
    assert "champion-2" in bearing(home)["luna-classification"]
    moved = promote(home, "models:/luna/1", "champion", "better", by="human")
    assert (moved.uri, moved.before) == ("models:/luna/1", "models:/luna/3")
    # The second classifier of the ensemble is the champion's no longer.
    assert bearing(home) == expected(home, champion=1, previous=3)
    promote(home, "models:/luna/2", "champion", "better still")
    assert bearing(home) == expected(home, champion=2, previous=1)
    assert [line.partition(" ")[2] for line in history(home, 3)] == [
        "@champion by the gate: first",
        "@previous by a person: models:/luna/1 became @champion",
        "no longer @previous by the gate: models:/luna/1 is",
    ]
    assert history(home, 1)[0].endswith("@champion by a person: better")


def test_rolled_back_twice_all_is_as_it_was(home: Home) -> None:
    promote(home, "models:/luna/3", "champion", "first")
    promote(home, "models:/luna/1", "champion", "second")
    moved = rollback(home)
    assert (moved.uri, moved.before) == ("models:/luna/3", "models:/luna/1")
    assert bearing(home) == expected(home, champion=3, previous=1)
    assert moved.line.endswith("@champion by a person: rolled back")
    rollback(home, "a mistake")
    assert bearing(home) == expected(home, champion=1, previous=3)
    assert (len(history(home, 1)), len(history(home, 3))) == (3, 4)
    assert history(home, 1)[-1].endswith("@champion by a person: a mistake")


def test_without_a_champion_or_a_previous_one_nothing_is_rolled_back(home: Home) -> None:
    with pytest.raises(TrackingError, match="there is no @champion to roll back from") as said:
        rollback(home)
    assert "\n" not in str(said.value)
    promote(home, "models:/luna/2", "champion", "first")
    with pytest.raises(TrackingError, match="no @previous to roll back to: models:/luna/2 is the first champion"):
        rollback(home)
    assert bearing(home) == expected(home, champion=2)


def test_the_previous_champion_may_be_promoted_by_its_alias(home: Home) -> None:
    for number in (1, 2):
        promote(home, f"models:/luna/{number}", "champion", "why not")
    promote(home, "models:/luna@previous", "champion", "it was better", by="human")
    assert bearing(home) == expected(home, champion=1, previous=2)


# --- refusals ---


@pytest.mark.parametrize(
    ("uri", "alias", "because", "message"),
    [
        ("models:/luna/1", "champion", "  \n ", "no reason was given"),
        ("models:/luna/1", "previous", "so", "@previous cannot be given; choose champion or demo"),
        ("models:/luna/1", "demo", "so", "is a bundle of real scans; it can be @champion, not @demo"),
        ("models:/luna/4", "champion", "so", "is a bundle of synthetic scans; it can be @demo, never @champion"),
        ("models:/luna/99", "champion", "so", "models:/luna/99: no such bundle in .*; see `luna model list`"),
        ("models:/luna@champion", "champion", "so", "models:/luna@champion: no such bundle"),
        ("models:/m-1", "champion", "so", "models:/m-1: is no bundle; give models:/luna/N"),
        ("models:/luna-segmentation/1", "champion", "so", "is no bundle"),
        ("luna\n/1", "champion", "so", r"luna\\n/1: is no bundle"),
    ],
)
def test_what_cannot_be_promoted_moves_nothing(home: Home, uri: str, alias: Any, because: str, message: str) -> None:
    with pytest.raises(TrackingError, match=message) as said:
        promote(home, uri, alias, because, by="human")
    assert "\n" not in str(said.value)
    assert bearing(home) == expected(home)
    assert not any(listed.history for listed in list_bundles(home))


def test_a_champion_is_not_promoted_again(home: Home) -> None:
    promote(home, "models:/luna/1", "champion", "first")
    with pytest.raises(TrackingError, match="models:/luna/1: is @champion already"):
        promote(home, "models:/luna@champion", "champion", "again")
    assert len(history(home, 1)) == 1


def test_a_champion_whose_models_lost_the_alias_gets_it_back(home: Home) -> None:
    promote(home, "models:/luna/1", "champion", "first")
    MlflowClient(tracking_uri=tracking.tracking_uri(home)).delete_registered_model_alias("luna-malignancy", "champion")
    promote(home, "models:/luna/1", "champion", "mended")
    assert bearing(home) == expected(home, champion=1)


def test_whoever_came_meanwhile_is_not_replaced(home: Home) -> None:
    one, two, three = (f"models:/luna/{number}" for number in (1, 2, 3))
    words = f"^@champion is nobody by now, {two} was judged against {one}; judge it again$"
    with pytest.raises(TrackingError, match=words):
        promote(home, two, "champion", "better", instead_of=one)
    promote(home, three, "champion", "first", instead_of=None)
    for judged_against, named in ((one, one), (None, "nobody")):
        words = f"^@champion is {three} by now, {two} was judged against {named}; judge it again$"
        with pytest.raises(TrackingError, match=words):
            promote(home, two, "champion", "better", instead_of=judged_against)
    assert bearing(home) == expected(home, champion=3)
    assert history(home, 2) == ()
    with pytest.raises(TrackingError, match="is @champion already"):
        promote(home, three, "champion", "better", instead_of=one)
    promote(home, two, "champion", "better", instead_of=three)
    assert bearing(home) == expected(home, champion=2, previous=3)
    promote(home, one, "champion", "whoever stands", by="human")
    assert bearing(home) == expected(home, champion=1, previous=2)


def test_the_demo_moves_without_a_previous_one(home: Home) -> None:
    promote(home, "models:/luna/1", "champion", "first")
    promote(home, "models:/luna/4", "demo", "drawn")
    promote(home, "models:/luna/5", "demo", "drawn better")
    assert bearing(home) == expected(home, champion=1, demo=5)
    assert history(home, 4)[-1].endswith("no longer @demo by the gate: models:/luna/5 is")


def test_reasons_are_one_line_of_some_length(home: Home) -> None:
    moved = promote(home, "models:/luna/1", "champion", "two\nlines " + "x" * 600)
    assert "\n" not in moved.line
    assert moved.line.endswith("x...")
    assert len(moved.line) < 600


# --- what learned from synthetic scans ---


def test_a_real_bundle_with_a_model_of_synthetic_scans_is_never_champion(
    tmp_path: Path, new_home: Callable[[Path], Home]
) -> None:
    fresh = new_home(tmp_path)
    hidden = toy_model(fresh, "malignancy", scans={DRAWN: "train"})  # its run says that it is of real scans
    uri = toy_bundle(fresh, malignancy=hidden)
    with pytest.raises(TrackingError, match=f"its malignancy model {hidden} learned from synthetic scans: no @champ"):
        promote(fresh, uri, "champion", "nobody looks", by="human")
    assert alias_of(fresh, "champion") is None


# --- what is gone, and what fails half-way ---


def lose(home: Home, uri: str, member: str) -> None:
    """Delete a member's files."""
    (model,) = registry.member_uris(registry.read_bundle(home, uri), member)
    shutil.rmtree(tracking.download_model(home, model))


def test_a_bundle_whose_models_are_gone_neither_rises_nor_returns(
    tmp_path: Path, new_home: Callable[[Path], Home]
) -> None:
    fresh = new_home(tmp_path)
    first, second = toy_bundle(fresh), toy_bundle(fresh)
    promote(fresh, first, "champion", "first")
    lose(fresh, first, "nodule")
    promote(fresh, second, "champion", "the first is gone")  # it only steps aside
    assert alias_of(fresh, "previous") == first
    with pytest.raises(TrackingError, match=f"{first}: cannot be @champion, its nodule model is not to be had") as said:
        rollback(fresh)
    assert "\n" not in str(said.value)
    with pytest.raises(TrackingError, match="its nodule model is not to be had"):
        promote(fresh, first, "champion", "come back", by="human")
    assert (alias_of(fresh, "champion"), alias_of(fresh, "previous")) == (second, first)


@contextmanager
def another(file: Path) -> Iterator[None]:
    """A file with one bit of its last number changed; as it was before when this is over."""
    before = file.read_bytes()
    file.write_bytes(before[:-4] + bytes([before[-4] ^ 1]) + before[-3:])
    try:
        yield
    finally:
        file.write_bytes(before)


def test_weights_that_are_not_the_registered_ones_are_refused(home: Home) -> None:
    fields, packed = (get(home, "models:/luna/1") for get in (registry.read_bundle, tracking.download_model))
    for member in STAGES:
        logged = tracking.download_model(home, fields[member])
        words = f"weights.safetensors of its {member} model {fields[member]} is not the file that was registered"
        with another(logged / "weights.safetensors"), pytest.raises(TrackingError, match=words) as said:
            promote(home, "models:/luna/1", "champion", "first")
        assert "\n" not in str(said.value)
    copy = packed / "artifacts" / "bundle" / fields["nodule"].removeprefix("models:/") / "weights.safetensors"
    with another(copy), pytest.raises(TrackingError, match=f"{copy}: not the file that was registered"):
        promote(home, "models:/luna/1", "champion", "first")
    assert bearing(home) == expected(home)
    for number in (1, 2):
        promote(home, f"models:/luna/{number}", "champion", "whole")
    with another(copy), pytest.raises(TrackingError, match="not the file that was registered"):
        rollback(home)
    assert bearing(home) == expected(home, champion=2, previous=1)


def test_a_bundle_of_an_older_version_is_registered_anew(tmp_path: Path, new_home: Callable[[Path], Home]) -> None:
    fresh = new_home(tmp_path)
    old = old_bundle(fresh)
    assert registry.read_bundle(fresh, old)["recipe"] == "toy"
    with pytest.raises(TrackingError, match="it can be @champion, not @demo"):
        promote(fresh, old, "demo", "so")
    assert len(list_bundles(fresh)) == 1  # what is refused is not registered
    moved = promote(fresh, old, "champion", "it is what we have", by="human")
    assert (moved.uri, moved.before, moved.renewed) == ("models:/luna/2", None, old)
    fields = registry.read_bundle(fresh, moved.uri)
    assert registry.as_given(fields) == registry.as_given(registry.read_bundle(fresh, old))
    model = mlflow.pyfunc.load_model("models:/luna@champion", model_config={"device": "cpu"})
    assert model.predict(["none.mhd"])["stage"].tolist() == ["not read"]
    with pytest.raises(TrackingError, match="models:/luna/2: is @champion already"):
        promote(fresh, old, "champion", "again")
    # One that stood before there were copies steps aside as it is, but does not come back.
    tracking.client_of(fresh).set_registered_model_alias("luna", "previous", old.rpartition("/")[2])
    with pytest.raises(TrackingError, match=f"to register it anew and use that: luna model promote {old} ") as said:
        rollback(fresh)
    assert "\n" not in str(said.value)
    assert (alias_of(fresh, "champion"), alias_of(fresh, "previous")) == (moved.uri, old)


def test_a_rollback_that_was_killed_is_seen_and_mended(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(home, "models:/luna/1", "champion", "first")
    promote(home, "models:/luna/2", "champion", "second")

    def killed(client: MlflowClient, name: str, alias: str, version: str) -> None:
        if (name, alias) == ("luna", "champion"):
            raise KeyboardInterrupt
        real(client, name, alias, version)

    real = MlflowClient.set_registered_model_alias
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", killed)
        patch.setattr(promotion, "_put_back", lambda step: None)  # whoever is killed puts nothing back
        with pytest.raises(KeyboardInterrupt):
            rollback(home, "it missed the small ones")
    assert alias_of(home, "champion") == alias_of(home, "previous") == "models:/luna/2"
    # It tells whose turn it was.
    assert history(home, 1)[-1].endswith("@champion by a person: it missed the small ones")
    with pytest.raises(TrackingError, match="models:/luna/2: is @champion and @previous: a move was cut short") as said:
        rollback(home)
    assert "luna model promote" in str(said.value)
    assert "\n" not in str(said.value)
    promote(home, "models:/luna/1", "champion", "as it was meant", by="human")
    assert bearing(home) == expected(home, champion=1, previous=2)
    rollback(home)
    assert bearing(home) == expected(home, champion=2, previous=1)


def test_a_move_that_fails_half_way_is_put_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(home, "models:/luna/3", "champion", "first")
    before, told = bearing(home), [listed.history for listed in list_bundles(home)]
    calls: list[tuple[Any, ...]] = []
    broken = 0  # the call that fails; 0 for none

    def failing(real: Any) -> Any:
        def call(client: MlflowClient, *arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) == broken:
                raise MlflowException("database is locked\nsee the log")
            real(client, *arguments)

        return call

    for name in ("set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag"):
        monkeypatch.setattr(MlflowClient, name, failing(getattr(MlflowClient, name)))
    # Two bundles are told of it, and ten aliases move, of which one goes: twelve calls.
    for broken in (1, 2, 3, 5, 12):  # a line, a model, the alias that goes, the bundle
        calls.clear()
        with pytest.raises(TrackingError, match=r"models:/luna/1: could not become @champion \(database is locked\)"):
            promote(home, "models:/luna/1", "champion", "better")
        assert bearing(home) == before, broken
        assert [listed.history for listed in list_bundles(home)] == told, broken
    broken = 0
    calls.clear()
    promote(home, "models:/luna/1", "champion", "better")
    assert len(calls) == 12
    assert [name for name, *_ in calls[:2]] == ["luna", "luna"]
    assert [tag for _, _, tag, *_ in calls[:2]] == ["luna.history.1", "luna.history.2"]
    assert calls[-1] == ("luna", "champion", "1")  # whoever asks for it gets it when all else has moved
    assert bearing(home) == expected(home, champion=1, previous=3)


# --- the list ---


def test_the_list_tells_of_every_bundle_even_a_damaged_one(tmp_path: Path, new_home: Callable[[Path], Home]) -> None:
    fresh = new_home(tmp_path)
    assert list_bundles(fresh) == ()
    first, second = toy_bundle(fresh), toy_bundle(fresh, origin="phantom")
    promote(fresh, first, "champion", "first")
    promotion.tag_version(fresh, second, {"luna.gate": "refused", "luna.gate.reasons": "a tie"})
    newest, oldest = list_bundles(fresh)
    assert (newest.uri, newest.aliases, newest.decision) == (second, (), "refused: a tie")
    assert (oldest.uri, oldest.aliases, oldest.problem) == (first, ("champion",), "")
    assert oldest.fields == registry.read_bundle(fresh, first)
    next(tracking.download_model(fresh, second).rglob("bundle.json")).write_text("{")
    damaged = list_bundles(fresh)[0]
    assert damaged.fields == {}
    assert "damaged" in damaged.problem


def test_an_alias_resolves_to_its_version(home: Home) -> None:
    promote(home, "models:/luna/2", "champion", "first")
    assert resolve(home, "models:/luna@champion") == alias_of(home, "champion") == "models:/luna/2"
    assert resolve(home, "models:/luna/2") == "models:/luna/2"


def test_two_equal_runs_at_once_register_one_version(tmp_path: Path, new_home: Callable[[Path], Home]) -> None:
    home = new_home(tmp_path)
    fields = toy_fields(home)
    with ThreadPoolExecutor(max_workers=2) as pool:
        uris = list(pool.map(lambda _: registry.register_bundle(home, fields), range(2)))
    assert uris[0] == uris[1]
    assert len(list_bundles(home)) == 1
