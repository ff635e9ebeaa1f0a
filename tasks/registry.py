"""Which models form a bundle, and which bundle is the one to use?

A bundle is a version of the registered model `luna`: three members, thresholds and settings, whole or not at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from lungml.home import Home
from tasks import tracking
from tasks.tracking import TrackingError

BUNDLE_NAME = "luna"
BUNDLE_MEMBERS = {"segmentation": "segmentation", "nodule": "classification", "malignancy": "malignancy"}
BUNDLE_FIELDS = (*BUNDLE_MEMBERS, "grouping", "nodule_threshold", "malignant_threshold", "recipe", "origin")


def register_bundle(home: Home, bundle: Mapping[str, Any], *, aliases: Sequence[str] = ()) -> str:
    """Make a bundle a version of the registered model `luna`, its members versions of theirs.

    A bundle that equals the newest version, the code's included, is that version: a repeated run adds none.

    Args:
        home: where MLflow's database lies.
        bundle: see `check_bundle`; the code's version is added as `code`.
        aliases: set on the new version; a phantom bundle may only be `demo`.

    Returns:
        `models:/luna/N`.

    Raises:
        TrackingError: when the bundle is not whole, a member is not there, or a phantom bundle asks for another alias.
    """
    check_bundle(bundle)
    if bundle["origin"] == "phantom" and set(aliases) - {"demo"}:
        raise TrackingError(f"a bundle of synthetic scans may only be @demo, not {', '.join(aliases)}")
    whole = {**_plain(bundle), "code": tracking.git_commit()}
    client = tracking.client_of(home)
    newest = _newest_version(client, BUNDLE_NAME)
    if newest and _holds(home, f"models:/{BUNDLE_NAME}/{newest}", whole):
        for alias in aliases:
            client.set_registered_model_alias(BUNDLE_NAME, alias, newest)
        return f"models:/{BUNDLE_NAME}/{newest}"
    for member, stage in BUNDLE_MEMBERS.items():
        for uri in member_uris(bundle, member):
            _register(client, f"luna-{stage}", uri)
    logged = client.create_logged_model(
        tracking.experiment_id_of(home, "end-to-end"),
        name="luna-bundle",
        model_type="bundle",
        params={name: value if isinstance(value, str) else json.dumps(value) for name, value in whole.items()},
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "bundle.json").write_text(json.dumps(whole, indent=1))
            Model(model_id=logged.model_id).save(str(Path(folder) / "MLmodel"))
            client.log_model_artifacts(logged.model_id, folder)
    except BaseException:
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    version = _register(client, BUNDLE_NAME, f"models:/{logged.model_id}")
    for alias in aliases:
        client.set_registered_model_alias(BUNDLE_NAME, alias, version)
    return f"models:/{BUNDLE_NAME}/{version}"


def read_bundle(home: Home, uri: str) -> dict[str, Any]:
    """The bundle behind `models:/luna/N` or `models:/luna@alias`.

    Raises:
        TrackingError: when there is none, or it is not whole.
    """
    file = next(tracking.download_model(home, uri).rglob("bundle.json"), None)
    if file is None:
        raise TrackingError(f"{uri}: is not a bundle; give models:/luna/N")
    try:
        bundle: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise TrackingError(f"{file}: damaged ({error}); restore it, or train or import again") from error
    check_bundle(bundle)
    return bundle


def check_bundle(bundle: Mapping[str, Any]) -> None:
    """See that a bundle is whole: three members, grouping, two thresholds, recipe, origin.

    A member is the URI of a model, or a list of them whose probabilities are averaged. `test_time_flips` may list
    the members whose answers are averaged over mirror images too; without it there are none.

    Raises:
        TrackingError: naming what is wrong.
    """
    missing = [name for name in BUNDLE_FIELDS if name not in bundle]
    if missing:
        raise TrackingError(f"the bundle lacks {', '.join(missing)}")
    if bundle["origin"] not in ("real", "phantom"):
        raise TrackingError(f"the bundle's origin is {bundle['origin']!r}, not 'real' or 'phantom'")
    for member in BUNDLE_MEMBERS:
        uris = member_uris(bundle, member)
        wrong = [uri for uri in uris if not str(uri).startswith("models:/m-")]
        if wrong:
            raise TrackingError(f"the bundle's {member} is {wrong[0]!r}, not a models:/m-... URI")
        if not uris:
            raise TrackingError(f"the bundle's {member} is an empty list; give the URI of a model, or several")
        if len(set(uris)) < len(uris):
            raise TrackingError(f"the bundle's {member} names a model twice; give each once")
    flips = bundle.get("test_time_flips", ())
    if not isinstance(flips, list | tuple) or not all(str(name) in BUNDLE_MEMBERS for name in flips):
        raise TrackingError(
            f"the bundle's test_time_flips is {flips!r}; give a list of some of {', '.join(BUNDLE_MEMBERS)}"
        )
    for threshold in ("nodule_threshold", "malignant_threshold"):
        if not 0.0 <= bundle[threshold] <= 1.0:
            raise TrackingError(f"the bundle's {threshold} is {bundle[threshold]!r}, not a probability")


def member_uris(bundle: Mapping[str, Any], member: str) -> tuple[str, ...]:
    """The URIs of a bundle's member, however many models it has."""
    given = bundle[member]
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _plain(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """A checked bundle in its one form, so that equal ones are equal: a lone URI is a text, no flips are no entry."""
    plain = dict(bundle)
    for member in BUNDLE_MEMBERS:
        uris = member_uris(bundle, member)
        plain[member] = uris[0] if len(uris) == 1 else list(uris)
    if not plain.get("test_time_flips", True):
        del plain["test_time_flips"]
    return plain


def _register(client: MlflowClient, name: str, uri: str) -> str:
    """The version of a registered model that holds a logged model; made when there is none yet."""
    model_id = uri.removeprefix("models:/")
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        raise TrackingError(f"{uri}: no such model in {client.tracking_uri}") from error
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.source == uri:  # the SQL registry keeps the URI, not the model's id
            return str(version.version)
    return str(client.create_model_version(name, uri, model_id=model_id).version)


def _newest_version(client: MlflowClient, name: str) -> str | None:
    versions = [int(version.version) for version in client.search_model_versions(f"name = '{name}'")]
    return str(max(versions)) if versions else None


def _holds(home: Home, uri: str, bundle: Mapping[str, Any]) -> bool:
    """Whether an equal bundle is still there whole under that URI."""
    try:
        return read_bundle(home, uri) == json.loads(json.dumps(bundle))
    except TrackingError:
        return False
