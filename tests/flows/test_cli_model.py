"""What the `luna model` commands say and do; every error one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from flows.cli_model import show_bundles
from lungml.home import Home
from tasks import promotion, tracking
from tasks.promotion import Moved, alias_of, list_bundles, promote
from tests.flows.environments import environment_of
from tests.tasks.toy_bundles import forget_aliases, old_bundle, toy_bundle

Luna = Callable[..., tuple[int, str, str]]
FIRST, SECOND, DRAWN = (f"models:/luna/{number}" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two bundles of real scans and one of synthetic ones."""
    home = Home(tmp_path_factory.mktemp("models"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert [toy_bundle(home, origin=o) for o in ("real", "real", "phantom")] == [FIRST, SECOND, DRAWN]
    return home


@pytest.fixture
def home(stocked: Home, environment: None) -> Home:
    forget_aliases(stocked)
    return stocked


@pytest.fixture
def environment(stocked: Home) -> Iterator[None]:
    with environment_of(stocked, columns=160):
        yield


def only_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1, said
    return lines[0]


def test_a_person_promotes_and_rolls_back(luna: Luna, home: Home) -> None:
    status, said, wrong = luna("model", "promote", FIRST, "--because", "published weights, checked by hand")
    assert (status, wrong) == (0, "")
    lines = said.splitlines()
    assert (lines[0], lines[-1]) == (f"{FIRST} is @champion", "Not for clinical use.")
    assert lines[1].endswith("@champion by a person: published weights, checked by hand")
    assert "rollback" not in said  # there is nothing to go back to

    status, said, _ = luna("model", "promote", SECOND, "--because", "better on our scans")
    assert status == 0
    assert f"before     {FIRST}, now @previous" in said.splitlines()
    assert "go back    luna model rollback" in said.splitlines()
    assert (alias_of(home, "champion"), alias_of(home, "previous")) == (SECOND, FIRST)

    status, said, _ = luna("model", "rollback", "--because", "it missed the small ones")
    assert (status, said.splitlines()[0]) == (0, f"{FIRST} is @champion")
    assert "@champion by a person: it missed the small ones" in said
    assert (alias_of(home, "champion"), alias_of(home, "previous")) == (FIRST, SECOND)
    assert luna("model", "rollback")[0] == 0
    assert alias_of(home, "champion") == SECOND


def test_whoever_overrules_the_gate_is_reminded_of_it(luna: Luna, home: Home) -> None:
    promotion.tag_version(home, FIRST, {"luna.gate": "refused", "luna.gate.reasons": "a tie [nothing gained]"})
    status, said, noted = luna("model", "promote", FIRST, "--because", "we need one")
    assert status == 0
    assert only_line(noted) == "note: the gate had refused: a tie [nothing gained]"
    assert said.startswith(f"{FIRST} is @champion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("promote", FIRST, "--because", " "), "error: no reason was given; say why, for those who come after"),
        (("promote", "models:/luna/77", "--because", "so"), "error: models:/luna/77: no such bundle in"),
        (("promote", "models:/m-1", "--because", "so"), "error: models:/m-1: is no bundle; give models:/luna/N"),
        (("promote", DRAWN, "--because", "so"), f"error: {DRAWN}: is a bundle of synthetic scans; it can be @demo"),
        (("promote", FIRST, "--because", "so", "--alias", "demo"), f"error: {FIRST}: is a bundle of real scans"),
        (("promote", FIRST, "--because", "so", "--alias", "best"), "error: @best cannot be given; choose champ"),
        (("rollback",), "error: there is no @champion to roll back from; see `luna model list`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(luna: Luna, home: Home, arguments: tuple[str, ...], message: str) -> None:
    status, said, wrong = luna("model", *arguments)
    assert (status, said) == (1, "")
    assert only_line(wrong).startswith(message)
    assert alias_of(home, "champion") is None


def test_a_reason_is_asked_for(luna: Luna, home: Home) -> None:
    status, _, wrong = luna("model", "promote", FIRST)
    assert status == 2
    assert "--because" in wrong


def test_a_bundle_whose_models_are_gone_is_one_line(luna: Luna, home: Home, tmp_path: Path) -> None:
    uri = toy_bundle(home)
    model = list_bundles(home)[0].fields["malignancy"]
    folder = tracking.download_model(home, model)
    shutil.move(folder, tmp_path / "gone")
    try:
        status, _, wrong = luna("model", "promote", uri, "--because", "so")
    finally:
        shutil.move(tmp_path / "gone", folder)
    assert status == 1
    assert only_line(wrong).startswith(f"error: {uri}: cannot be @champion, its malignancy model is not to be had")


def test_a_bundle_of_an_older_version_is_registered_anew(luna: Luna, home: Home) -> None:
    old = old_bundle(home)
    status, said, noted = luna("model", "promote", old, "--because", "it is what we have")
    assert status == 0
    uri = alias_of(home, "champion")
    assert uri not in (None, old)
    assert said.splitlines()[0] == f"{uri} is @champion"
    assert only_line(noted) == f"note: {old} is of an older version of luna: registered anew as {uri}"


def test_a_bundle_of_synthetic_scans_may_be_the_demo(luna: Luna, home: Home) -> None:
    status, said, _ = luna("model", "promote", DRAWN, "--because", "the newest", "--alias", "demo")
    assert status == 0
    assert said.splitlines()[0] == f"{DRAWN} is @demo"


def test_the_list_shows_what_is_used_and_why(luna: Luna, home: Home) -> None:
    promote(home, FIRST, "champion", "the first")
    promote(home, SECOND, "champion", "better")
    promotion.tag_version(home, DRAWN, {"luna.gate": "refused", "luna.gate.reasons": "a tie: nothing gained"})
    status, said, wrong = luna("model", "list")
    assert (status, wrong) == (0, "")
    rows = {line.split()[0]: line for line in said.splitlines() if "models:/luna/" in line}
    assert rows.keys() >= {FIRST, SECOND, DRAWN}
    assert rows[SECOND].split()[1:5] == ["@champion", "toy", "real", "1+1+1"]
    assert rows[FIRST].split()[1] == "@previous"
    assert rows[DRAWN].split()[1:4] == ["toy", "synthetic", "1+1+1"]
    assert rows[DRAWN].split()[-1] == "refused"
    assert "@champion by" not in said
    assert max(map(len, said.splitlines())) <= 80  # also where there are more columns
    assert said.splitlines()[-1] == "Not for clinical use."

    lines = luna("model", "list", "--history")[1].splitlines()
    assert f"{DRAWN} the gate: refused: a tie: nothing gained" in lines
    told = [line for line in lines if " by " in line]
    assert sorted(line.split("  ")[1] for line in told) == [
        f"{FIRST} @champion by the gate: the first",
        f"{FIRST} @previous by the gate: {SECOND} became @champion",
        f"{SECOND} @champion by the gate: better",
    ]
    assert [line.split("  ")[0] for line in told] == sorted(line.split("  ")[0] for line in told)


def test_a_damaged_bundle_is_listed_with_a_note(luna: Luna, home: Home) -> None:
    file = next(tracking.download_model(home, SECOND).rglob("bundle.json"))
    text = file.read_text()
    file.write_text("{")
    try:
        status, said, noted = luna("model", "list")
    finally:
        file.write_text(text)
    assert status == 0
    assert only_line(noted).startswith(f"note: {SECOND}: ")
    assert "damaged" in noted
    assert next(line for line in said.splitlines() if SECOND in line).split()[1] == "unreadable"


def test_a_list_of_nothing_says_how_to_get_something() -> None:
    console = Console(record=True, width=100)
    show_bundles((), False, console)
    assert "no bundle is registered yet; luna demo or luna run trains one" in console.export_text()


def test_a_move_of_the_demo_tells_of_no_way_back() -> None:
    console = Console(record=True, width=100)
    from flows.cli_model import show_move

    show_move(Moved(alias="demo", uri=DRAWN, before="models:/luna/2", line="2026-01-01T00:00:00Z @demo"), console)
    said = console.export_text()
    assert "before     models:/luna/2\n" in said
    assert "rollback" not in said
    assert "previous" not in said
