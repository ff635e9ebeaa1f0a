"""Which models form a bundle, and which bundle is the one to use?

A bundle is a version of the registered model `luna`: three members, thresholds and settings, whole or not at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException

from lungml.calibration import Calibration
from lungml.candidates import GroupingSettings
from lungml.files import locked
from lungml.groups import key_digest
from lungml.home import Home
from lungml.inference import InferenceSettings
from lungml.secrets import without_secrets
from tasks import tracking
from tasks.connection import patiently, plain
from tasks.members import load_member
from tasks.packing import BUNDLE_FILE, MEMBER_FILES, check_packed, member_file, save_packed, sha256
from tasks.tracking import TrackingError

BUNDLE_NAME = "luna"
BUNDLE_MEMBERS = {"segmentation": "segmentation", "nodule": "classification", "malignancy": "malignancy"}
MEMBER_OF = {stage: member for member, stage in BUNDLE_MEMBERS.items()}
THRESHOLDS = ("nodule_threshold", "malignant_threshold")
BUNDLE_FIELDS = (*BUNDLE_MEMBERS, "grouping", *THRESHOLDS, "recipe", "origin")
# Older bundles have none of these: no flips, no calibration, malignancy where a nodule is seen, default means.
OPTIONAL_FIELDS = ("test_time_flips", "calibration", "judge_all", "inference")
DECIDING_FIELDS = (*BUNDLE_MEMBERS, "grouping", *THRESHOLDS, *OPTIONAL_FIELDS)  # of what is found
CONTENT_TAG = "luna.content"  # of a version: the digest of its whole bundle
ADDED_FIELDS = ("code", "sha256")  # by registering
NOT_FOR = "Not for clinical use."
ORIGINS = {"real": "real", "phantom": "synthetic"}


def register_bundle(home: Home, bundle: Mapping[str, Any]) -> str:
    """Make a bundle a version of the registered model `luna`, its members versions of theirs.

    A bundle that equals a version, the code's included, is that version: a repeated run adds none. The
    version is a pyfunc model that holds copies of its members, see `tasks.packing`.

    Args:
        home: where MLflow's database lies.
        bundle: see `check_bundle`; the code's version is added as `code`, that of the members' files as `sha256`.

    Returns:
        `models:/luna/N`; `tasks.promotion` gives it an alias.

    Raises:
        TrackingError: when the bundle is not whole, a member is not there, not of its stage or no network, or a member
            learned from scans of another origin.
    """
    check_bundle(bundle)
    files = _member_files(home, bundle)
    digests = {name: sha256(file) for name, file in files.items()}
    whole = {**plain_bundle(bundle), "code": tracking.git_commit(), "sha256": digests}
    with locked(home.mlflow_db.with_name("bundles")):  # two equal runs at once register one version
        return _find_or_register(home, whole, files)


def _find_or_register(home: Home, whole: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """The version that holds this bundle; made when there is none."""
    client = tracking.client_of(home)
    content = key_digest(whole)
    for known in _versions_with(client, content):
        if _holds(home, f"models:/{BUNDLE_NAME}/{known}", whole):
            return f"models:/{BUNDLE_NAME}/{known}"
    for member, stage in BUNDLE_MEMBERS.items():
        for uri in member_uris(whole, member):
            register_version(client, f"luna-{stage}", uri)
    logged = client.create_logged_model(
        tracking.experiment_id_of(home, "end-to-end"),
        name="luna-bundle",
        model_type="bundle",
        params={
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in whole.items()
            if name != "sha256"
        },
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / "model"
            save_packed(packed, whole, files, logged.model_id)
            client.log_model_artifacts(logged.model_id, str(packed))
    except BaseException:
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    version = register_version(client, BUNDLE_NAME, f"models:/{logged.model_id}", tags={CONTENT_TAG: content})
    return f"models:/{BUNDLE_NAME}/{version}"


def read_bundle(home: Home, uri: str) -> dict[str, Any]:
    """The bundle behind `models:/luna/N` or `models:/luna@alias`.

    Raises:
        TrackingError: when there is none, or it is not whole.
    """
    return read_bundle_file(_bundle_file(home, uri))


def read_bundle_file(file: Path) -> dict[str, Any]:
    """The bundle in a `bundle.json`.

    Raises:
        TrackingError: when it is damaged or not whole.
    """
    try:
        bundle = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise TrackingError(f"{file}: damaged ({error}); restore it, or train or import again") from error
    if not isinstance(bundle, dict):
        raise TrackingError(f"{file}: damaged (no bundle); restore it, or train or import again")
    check_bundle(bundle)
    return bundle


def holds_copies(bundle: Mapping[str, Any]) -> bool:
    """Whether a registered bundle holds copies of its models; those that older versions of luna registered do not."""
    return "sha256" in bundle


def as_given(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """A registered bundle's fields as they were given to `register_bundle`."""
    return {name: value for name, value in bundle.items() if name not in ADDED_FIELDS}


def check_whole(home: Home, uri: str) -> None:
    """See that a registered bundle's copies, and the models that they are of, are the files that were registered.

    Raises:
        TrackingError: there is no such bundle, or naming the first file that is gone or another one.
    """
    file = _bundle_file(home, uri)
    bundle = read_bundle_file(file)
    check_files(file.parent, bundle)
    for member in BUNDLE_MEMBERS:
        for model in member_uris(bundle, member):
            folder = tracking.download_model(home, model)
            for name in MEMBER_FILES:
                found = next(folder.rglob(name), None)
                if found is None or sha256(found) != bundle["sha256"][member_file(model, name)]:
                    raise TrackingError(
                        f"{uri}: {name} of its {member} model {model} is not the file that was registered; restore "
                        f"{folder / name}, or make a bundle of other models"
                    )


def check_bundle(bundle: Mapping[str, Any]) -> None:
    """See that a bundle is whole: three members, grouping, two thresholds, recipe, origin; and that it has no more.

    A member is the URI of a model, or a list of them whose probabilities are averaged. Optional are:

    * `test_time_flips`: the members whose answers are averaged over mirror images too; none without it.
    * `calibration`: see `lungml.calibration.Calibration.as_dict`; none without it.
    * `judge_all`: whether the malignancy models are asked about every candidate; not without it.
    * `inference`: fields of `lungml.inference.InferenceSettings`; the defaults without it.

    The models themselves are looked at when it is registered and when it is loaded.

    Raises:
        TrackingError: naming what is wrong.
    """
    missing = [name for name in BUNDLE_FIELDS if name not in bundle]
    if missing:
        raise TrackingError(f"the bundle lacks {', '.join(missing)}")
    unknown = [str(name) for name in bundle if name not in (*BUNDLE_FIELDS, *OPTIONAL_FIELDS, *ADDED_FIELDS)]
    if unknown:  # of a newer version, or a slip: either way it would be judged by other settings than it says
        raise TrackingError(f"the bundle has {', '.join(unknown)}, which this version of luna does not know")
    if bundle["origin"] not in ORIGINS:
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
    for threshold in THRESHOLDS:
        value = bundle[threshold]
        if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise TrackingError(f"the bundle's {threshold} is {value!r}, not a probability")
    bundle_settings(bundle)


def bundle_settings(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """What of a bundle is no model, as `lungml.findings.Bundle` takes it.

    Raises:
        TrackingError: naming the field that says something else.
    """
    judge_all = bundle.get("judge_all", False)
    if not isinstance(judge_all, bool):
        raise TrackingError(f"the bundle's judge_all is {judge_all!r}, not true or false")
    return {
        "grouping": _built(bundle, "grouping", lambda fields: GroupingSettings(**fields)),
        "calibration": _built(bundle, "calibration", _calibration),
        "inference": _built(bundle, "inference", lambda fields: InferenceSettings(**fields)),
        "judge_all": judge_all,
        "flips": tuple(bundle.get("test_time_flips", ())),
        **{threshold: float(bundle[threshold]) for threshold in THRESHOLDS},
    }


def _built(bundle: Mapping[str, Any], name: str, build: Callable[[dict[str, Any]], Any]) -> Any:
    """The settings in one of a bundle's fields; without it their defaults."""
    fields = bundle.get(name, {})
    try:
        return build(dict(fields))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise TrackingError(f"the bundle's {name} is {fields!r}, which this version cannot use ({why})") from error


def _calibration(fields: Mapping[str, Any]) -> Calibration:
    calibration = Calibration.from_dict(fields)
    said = {name: value for name, value in fields.items() if value is not None}
    meant = {name: value for name, value in calibration.as_dict().items() if value is not None}
    if fields and said != meant:
        raise ValueError(f"it means {meant}")
    return calibration


def member_uris(bundle: Mapping[str, Any], member: str) -> tuple[str, ...]:
    """The URIs of a bundle's member, however many models it has."""
    given = bundle[member]
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def origin_of(home: Home, uri: str) -> str | None:
    """What a model's run says that it learned from, "real" or "phantom"; None where it does not say."""
    client = tracking.client_of(home)
    try:
        run_id = client.get_logged_model(uri.removeprefix("models:/")).source_run_id
        return client.get_run(run_id).data.tags.get("luna.origin") if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _member_files(home: Home, bundle: Mapping[str, Any]) -> dict[str, Path]:
    """The files of a bundle's members, each looked at: name in the bundle's folder -> where it lies now."""
    files = {}
    for member, stage in BUNDLE_MEMBERS.items():
        for uri in member_uris(bundle, member):
            load_member(home, uri, stage)
            origin = origin_of(home, uri)
            if origin not in (None, bundle["origin"]):
                learned, said = (ORIGINS.get(name, name) for name in (str(origin), bundle["origin"]))
                raise TrackingError(f"{uri}: learned from {learned} scans; a bundle of {said} scans cannot hold it")
            folder = tracking.download_model(home, uri)
            for name in MEMBER_FILES:
                files[member_file(uri, name)] = next(folder.rglob(name))
    return files


def plain_bundle(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """A checked bundle in its one form, so that equal ones are equal: a lone URI is a text, no flips are no entry."""
    plain = dict(bundle)
    for member in BUNDLE_MEMBERS:
        uris = member_uris(bundle, member)
        plain[member] = uris[0] if len(uris) == 1 else list(uris)
    settings = bundle_settings(bundle)
    for name, said in (
        ("test_time_flips", settings["flips"]),
        ("judge_all", settings["judge_all"]),
        ("calibration", settings["calibration"].method != "none"),
        ("inference", settings["inference"] != InferenceSettings()),
    ):
        if not said:
            plain.pop(name, None)
    return plain


def _described(name: str) -> str:
    """What a registered model holds, for its page."""
    if name != BUNDLE_NAME:
        return f"The {name.removeprefix('luna-')} models that bundles, the versions of `luna`, are made of. {NOT_FOR}"
    return (
        "Bundles: each version names the segmentation, nodule and malignancy models that are used together. "
        f"`@champion` is in use, `@previous` was before it; `@demo` was made of synthetic scans. {NOT_FOR}"
    )


def register_version(client: MlflowClient, name: str, uri: str, *, tags: Mapping[str, str] | None = None) -> str:
    """The version of a registered model that holds a logged model; made, with some tags, when there is none yet."""
    model_id = uri.removeprefix("models:/")
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        raise TrackingError(f"{uri}: no such model in {without_secrets(client.tracking_uri)}") from error
    try:
        client.create_registered_model(name, description=_described(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    ask = plain(client)

    def find_or_make() -> str:  # together: where only the answer was lost, the version is there
        for version in ask.search_model_versions(f"name = '{name}'"):
            if version.source == uri:  # the SQL registry keeps the URI, not the model's id
                return str(version.version)
        return str(ask.create_model_version(name, uri, tags=dict(tags or {}), model_id=model_id).version)

    return patiently(client.tracking_uri, find_or_make)


def _versions_with(client: MlflowClient, content: str) -> list[str]:
    """The versions of `luna` that were registered with this content, newest first."""
    held = client.search_model_versions(f"name = '{BUNDLE_NAME}' and tag.`{CONTENT_TAG}` = '{content}'")
    return [str(number) for number in sorted((int(version.version) for version in held), reverse=True)]


def _bundle_file(home: Home, uri: str) -> Path:
    file = next(tracking.download_model(home, uri).rglob(BUNDLE_FILE), None)
    if file is None:
        raise TrackingError(f"{uri}: is not a bundle; give models:/luna/N")
    return file


def _holds(home: Home, uri: str, bundle: Mapping[str, Any]) -> bool:
    """Whether an equal bundle is still there whole under that URI."""
    try:
        file = _bundle_file(home, uri)
        held = read_bundle_file(file)
        check_files(file.parent, held)
        return held == json.loads(json.dumps(bundle))
    except TrackingError:
        return False


def check_files(folder: Path, bundle: Mapping[str, Any]) -> None:
    """See that a bundle's folder holds the files that were registered, see `tasks.packing.check_packed`."""
    check_packed(folder, bundle, [uri for member in BUNDLE_MEMBERS for uri in member_uris(bundle, member)])
