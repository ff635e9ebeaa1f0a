"""Which bundle is the one to use, since when, why, and how does one go back?

Aliases of the registered model `luna` answer: `@champion` is used, `@previous` was before it, `@demo` is the best of
those of synthetic scans. A bundle's models bear the same aliases on the registered models of their stages, so that all
four move as one; the second model of an ensemble is `@champion-2` there, and so on. Every move is written on the
bundle's version, as a tag: when (UTC), who (the gate, or a person), why.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lungml.candidacy import Origin, kind
from lungml.errors import one_line
from lungml.files import locked
from lungml.gate import Alias
from lungml.home import Home
from tasks import registry, tracking
from tasks.members import load_member
from tasks.provenance import MISSING, learned_origin
from tasks.registry import BUNDLE_MEMBERS, BUNDLE_NAME
from tasks.tracking import TrackingError

log = logging.getLogger(__name__)

By = Literal["gate", "human"]
CHAMPION, PREVIOUS, DEMO = "champion", "previous", "demo"
WHO: Mapping[By, str] = {"gate": "the gate", "human": "a person"}
HISTORY = "luna.history."  # and a number: one tag for every move
GATE, REASONS = "luna.gate", "luna.gate.reasons"  # what the gate said of a version
MAX_BECAUSE = 500  # characters: a reason, not a report
WHOEVER = "whoever"  # bears the alias may be replaced


class OvertakenError(TrackingError):
    """Another bundle than the one that was judged against bears the alias by now; judging again may end it."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """An alias that was moved.

    Attributes:
        alias: which.
        uri: `models:/luna/N` that bears it now.
        before: the one that bore it before; None when none did.
        line: what the history says.
        renewed: the version of an older luna that `uri` is made of; None where it was not made for this.
    """

    alias: str
    uri: str
    before: str | None
    line: str
    renewed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A registered bundle, in a row of the list.

    Attributes:
        uri: `models:/luna/N`.
        aliases: that it bears.
        registered: when, UTC.
        fields: see `registry.check_bundle`; empty when it cannot be read.
        problem: why it cannot, in one line, else empty.
        decision: of the gate, promoted or refused, and why, in one line; empty when it was not asked.
        history: a line for every alias that it got or lost, the oldest first.
    """

    uri: str
    aliases: tuple[str, ...]
    registered: datetime
    fields: Mapping[str, Any]
    problem: str
    decision: str
    history: tuple[str, ...]


def alias_of(home: Home, alias: str) -> str | None:
    """`models:/luna/N` of the bundle that bears an alias; None when none does."""
    version = _aliases(tracking.client_of(home), BUNDLE_NAME).get(alias)
    return _uri(version) if version else None


def resolve(home: Home, uri: str) -> str:
    """`models:/luna/N` behind a bundle's URI, such as `models:/luna@champion`.

    Raises:
        TrackingError: there is no such bundle.
    """
    client = tracking.client_of(home)
    found = re.fullmatch(rf"models:/{BUNDLE_NAME}(?:/([0-9]{{1,9}})|@([\w-]+))", uri)
    if not found:
        raise TrackingError(
            one_line(f"{uri}: is no bundle; give models:/{BUNDLE_NAME}/N or models:/{BUNDLE_NAME}@ALIAS")
        )
    number, alias = found.groups()
    try:
        if alias:
            number = client.get_model_version_by_alias(BUNDLE_NAME, alias).version
        return _uri(client.get_model_version(BUNDLE_NAME, number).version)
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        raise TrackingError(f"{uri}: no such bundle in {tracking.shown_uri(home)}; see `luna model list`") from error


def promote(
    home: Home, uri: str, alias: Alias, because: str, by: By = "gate", *, instead_of: str | None = WHOEVER
) -> Moved:
    """Give a bundle and its models an alias; the champion before it becomes `@previous`.

    All aliases move, or none does: what cannot be is refused first, and a failure half-way is put back. A move that
    was cut short, with its process, is mended by promoting the bundle again. A bundle that an older version of luna
    registered, without copies of its models, cannot be loaded by MLflow: it is registered anew first, as a version of
    its own.

    Args:
        home: where MLflow's database lies.
        uri: `models:/luna/N` or an alias.
        alias: champion or demo.
        because: one line, kept with the move; name no person.
        by: the gate, or a person who overrules it.
        instead_of: `models:/luna/N` that it was judged against, None for nobody: if another bears the alias by now,
            nothing moves.

    Raises:
        TrackingError: no reason was given; there is no such bundle, it is not whole, a file of it or of its models is
            gone or another one; one of synthetic scans asks for more than `@demo`, or one of real scans for that; it
            bears the alias already.
        OvertakenError: another one bears it than it was judged against.
    """
    if alias not in (CHAMPION, DEMO):
        raise TrackingError(f"@{alias} cannot be given; choose {CHAMPION} or {DEMO}")
    why = _reason(because)
    with locked(_lock(home)):
        found = version = _number(resolve(home, uri))
        fields = _check(home, version, alias)
        now = _aliases(tracking.client_of(home), BUNDLE_NAME)
        stands = _uri(now[alias]) if alias in now else None
        if instead_of not in (WHOEVER, stands) and now.get(alias) != version:
            raise OvertakenError(
                f"@{alias} is {stands or 'nobody'} by now, {_uri(version)} was judged against "
                f"{instead_of or 'nobody'}; judge it again"
            )
        if not registry.holds_copies(fields):
            version = _number(registry.register_bundle(home, registry.as_given(fields)))
        registry.check_whole(home, _uri(version))
        wanted: dict[str, str] = {alias: version}
        if alias == CHAMPION and now.get(CHAMPION, version) != version:
            wanted[PREVIOUS] = now[CHAMPION]
        moved = _move(home, wanted, alias, why, by)
        return moved if version == found else replace(moved, renewed=_uri(found))


def rollback(home: Home, because: str = "rolled back", by: By = "human") -> Moved:
    """Let the previous champion and its models be champion again, and the present one `@previous`: twice is nothing.

    Raises:
        TrackingError: there is no champion or no previous one, the latter is not whole, or the last move was cut
            short, so that nothing says which bundle was the previous one.
    """
    why = _reason(because)
    with locked(_lock(home)):
        now = _aliases(tracking.client_of(home), BUNDLE_NAME)
        if CHAMPION not in now:
            raise TrackingError(f"there is no @{CHAMPION} to roll back from; see `luna model list`")
        if PREVIOUS not in now:
            raise TrackingError(f"there is no @{PREVIOUS} to roll back to: {_uri(now[CHAMPION])} is the first champion")
        if now[PREVIOUS] == now[CHAMPION]:
            raise TrackingError(
                f"{_uri(now[CHAMPION])}: is @{CHAMPION} and @{PREVIOUS}: a move was cut short; see `luna model list "
                "--history` and promote the one to use: luna model promote URI --because TEXT"
            )
        uri = _uri(now[PREVIOUS])
        if not registry.holds_copies(_check(home, now[PREVIOUS], CHAMPION)):
            raise TrackingError(
                f"{uri}: an older version of luna registered it without copies of its models, so that MLflow cannot "
                f"load it; to register it anew and use that: luna model promote {uri} --because TEXT"
            )
        registry.check_whole(home, uri)
        return _move(home, {CHAMPION: now[PREVIOUS], PREVIOUS: now[CHAMPION]}, CHAMPION, why, by)


def list_bundles(home: Home) -> tuple[Listed, ...]:
    """All registered bundles, the newest first; one that cannot be read is listed with the reason."""
    client = tracking.client_of(home)
    bearing = _aliases(client, BUNDLE_NAME)
    listed = []
    for version in sorted(client.search_model_versions(f"name = '{BUNDLE_NAME}'"), key=lambda v: -int(v.version)):
        problem, fields = "", {}
        try:
            fields = registry.read_bundle(home, _uri(version.version))
        except TrackingError as error:
            problem = str(error)
        listed.append(_listed(version, bearing, fields, problem))
    return tuple(listed)


def list_bundle(home: Home, uri: str) -> Listed:
    """`models:/luna/N` alone, without a look at the others: a server's bundles are copied to be read.

    Raises:
        TrackingError: it cannot be read.
    """
    client, fields = tracking.client_of(home), registry.read_bundle(home, uri)
    return _listed(client.get_model_version(BUNDLE_NAME, _number(uri)), _aliases(client, BUNDLE_NAME), fields)


def tag_version(home: Home, uri: str, tags: Mapping[str, str]) -> None:
    """Write tags on a bundle's version."""
    client, number = tracking.client_of(home), _number(uri)
    for name, value in tags.items():
        client.set_model_version_tag(BUNDLE_NAME, number, name, value[: tracking.MAX_TAG_CHARACTERS])


def _listed(version: ModelVersion, bearing: Mapping[str, str], fields: Mapping[str, Any], problem: str = "") -> Listed:
    return Listed(
        uri=_uri(version.version),
        aliases=tuple(sorted(alias for alias, number in bearing.items() if number == str(version.version))),
        registered=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        fields=fields,
        problem=problem,
        decision=": ".join(version.tags[name] for name in (GATE, REASONS) if version.tags.get(name)),
        history=tuple(version.tags[name] for name in _history(version.tags)),
    )


def _check(home: Home, version: str, alias: str) -> dict[str, Any]:
    """The fields of a bundle; refused when it may not bear the alias, or a model of it is not to be had."""
    uri = _uri(version)
    fields = registry.read_bundle(home, uri)
    origin: Origin = fields["origin"]
    if (origin == "phantom") != (alias == DEMO):
        only = f"@{DEMO}, never @{CHAMPION}" if origin == "phantom" else f"@{CHAMPION}, not @{DEMO}"
        raise TrackingError(f"{uri}: is a bundle of {kind(origin)}; it can be {only}")
    for member, stage in BUNDLE_MEMBERS.items():
        for model in registry.member_uris(fields, member):
            try:
                load_member(home, model, stage)
            except TrackingError as error:
                raise TrackingError(
                    f"{uri}: cannot be @{alias}, its {member} model is not to be had: {error}"
                ) from error
            if alias == CHAMPION and learned_origin(home, model) == "phantom":
                raise TrackingError(f"{uri}: its {member} model {model} learned from synthetic scans: no @{CHAMPION}")
    return fields


def _move(home: Home, wanted: Mapping[str, str], alias: str, because: str, by: By) -> Moved:
    """Let versions of `luna` bear the wanted aliases, their models those of their stages, and write it down."""
    client = tracking.client_of(home)
    now = _aliases(client, BUNDLE_NAME)
    places = _places(home, client, wanted, must=wanted[alias])
    there = {name: _aliases(client, name) for name in {name for name, _ in places}}
    changes = [(name, borne, version) for (name, borne), version in places.items() if there[name].get(borne) != version]
    if not changes:
        raise TrackingError(f"{_uri(wanted[alias])}: is @{alias} already")
    stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    lines: list[tuple[str, str]] = []
    for borne, version in wanted.items():
        why = because if borne == alias else f"{_uri(wanted[alias])} became @{alias}"
        lines.append((version, f"{stamp} @{borne} by {WHO[by]}: {why}"))
        lost = now.get(borne)
        if lost and lost not in wanted.values():
            lines.append((lost, f"{stamp} no longer @{borne} by {WHO[by]}: {_uri(version)} is"))
    try:
        with ExitStack() as undo:
            # Written first: of a move that is cut short, it is all that tells whose turn it was.
            for version, line in lines:
                tag = _next_tag(client, version)
                undo.callback(_put_back, partial(client.delete_model_version_tag, BUNDLE_NAME, version, tag))
                client.set_model_version_tag(BUNDLE_NAME, version, tag, line)
            for name, borne, new in changes:
                undo.callback(_put_back, partial(_set_alias, client, name, borne, there[name].get(borne)))
                _set_alias(client, name, borne, new)
            undo.pop_all()
    except MlflowException as error:
        first = str(error).splitlines()[0]
        raise TrackingError(f"{_uri(wanted[alias])}: could not become @{alias} ({first}); nothing moved") from error
    return Moved(
        alias=alias, uri=_uri(wanted[alias]), before=_uri(now[alias]) if alias in now else None, line=lines[0][1]
    )


def _places(
    home: Home, client: MlflowClient, wanted: Mapping[str, str], must: str
) -> dict[tuple[str, str], str | None]:
    """Which version of which registered model shall bear which alias; None for none; those of `luna` last.

    A bundle that only steps aside, unlike the one that must be whole, may have lost its models.
    """
    places: dict[tuple[str, str], str | None] = {}
    for stage in BUNDLE_MEMBERS.values():
        name = f"{BUNDLE_NAME}-{stage}"
        for borne in _aliases(client, name):
            if re.sub(r"-\d+$", "", borne) in wanted:
                places[name, borne] = None
    for alias, version in wanted.items():
        try:
            fields = registry.read_bundle(home, _uri(version))
            for member, stage in BUNDLE_MEMBERS.items():
                name = f"{BUNDLE_NAME}-{stage}"
                for place, uri in enumerate(registry.member_uris(fields, member), start=1):
                    borne = alias if place == 1 else f"{alias}-{place}"
                    places[name, borne] = registry.register_version(client, name, uri)
        except TrackingError as error:
            if version == must:
                raise
            log.warning("%s steps aside without its models: %s", _uri(version), error)
    # Whoever loads a bundle asks for an alias of `luna`: moved last, it moves when all the others have.
    return {**places, **{(BUNDLE_NAME, alias): version for alias, version in sorted(wanted.items(), reverse=True)}}


def _put_back(step: Callable[[], object]) -> None:
    try:
        step()
    except MlflowException as error:
        log.error("an alias could not be put back (%s); see `luna model list` and promote again", error)


def _set_alias(client: MlflowClient, name: str, alias: str, version: str | None) -> None:
    if version is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, version)


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """The versions of a registered model by alias; none where there is no such model."""
    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        return {}


def _history(tags: Mapping[str, str]) -> list[str]:
    """The names of the tags that tell a version's history, the oldest first."""
    return sorted((name for name in tags if name.startswith(HISTORY)), key=lambda name: int(name.removeprefix(HISTORY)))


def _next_tag(client: MlflowClient, version: str) -> str:
    before = _history(client.get_model_version(BUNDLE_NAME, version).tags)
    return f"{HISTORY}{int(before[-1].removeprefix(HISTORY)) + 1 if before else 1}"


def _reason(because: str) -> str:
    why = one_line(" ".join(because.split()))
    if not why:
        raise TrackingError("no reason was given; say why, for those who come after: --because TEXT")
    return why if len(why) <= MAX_BECAUSE else f"{why[:MAX_BECAUSE]}..."


def _lock(home: Home) -> Path:
    return home.mlflow_db.with_name("aliases")


def _uri(version: str | int) -> str:
    return f"models:/{BUNDLE_NAME}/{version}"


def _number(uri: str) -> str:
    return uri.rpartition("/")[2]
