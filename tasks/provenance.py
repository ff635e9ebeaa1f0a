"""Which scans taught a model, and which ones chose it?

The run of a training names them. A model that started from another one, or learned from its candidates, has used that
one's scans as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException

from lungml import frozen_split
from lungml.candidacy import Origin
from lungml.home import Home
from lungml.phantom import is_phantom_uid
from tasks import registry, tracking

PARENT = "luna.parent."  # of a training's run, and a stage: what it started from
LEARNED, CHOSE = "learned from", "was chosen on"
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's answers to what is not there


@dataclass(frozen=True, kw_only=True)
class Used:
    """What one model of a bundle, and whatever it started from, was shown.

    Attributes:
        member: what the model is there for: segmentation, nodule or malignancy.
        uri: of the model.
        learned: the series that they learned from, and all others of those patients, as far as they are known.
        chose: those that a model was chosen on, alike.
        silent: URIs of those whose runs do not say.
    """

    member: str
    uri: str
    learned: frozenset[str]
    chose: frozenset[str]
    silent: tuple[str, ...]

    def deed(self, series_uid: str) -> str:
        """What it did with a series or its patient: "learned from", "was chosen on", or nothing: empty."""
        return LEARNED if series_uid in self.learned else CHOSE if series_uid in self.chose else ""


def used_by(
    home: Home,
    fields: Mapping[str, Any],
    *,
    patients: Mapping[str, str] | None = None,
    unsaid: Mapping[str, str] | None = None,
) -> tuple[Used, ...]:
    """What every model of a bundle was shown, in the order of the bundle's members.

    Args:
        home: where the models' runs lie; its split.csv tells whose a series is.
        fields: see `registry.check_bundle`.
        patients: series_uid -> mark, as far as it is known from elsewhere.
        unsaid: series_uid -> split: what a model whose run does not say is taken to have been shown.

    Raises:
        SplitError: split.csv is damaged.
    """
    # One table may name the patients in other words than the other: both count.
    marks = (frozen_split.frozen_patients(home.split_csv)[1], patients or {})
    told: dict[str, Mapping[str, str]] = {}
    used = []
    for member in registry.BUNDLE_MEMBERS:
        for uri in registry.member_uris(fields, member):
            models = ancestry(home, uri)
            told |= {model: tracking.model_scans(home, model) for model in models if model not in told}
            shown = [(uid, side) for model in models for uid, side in (told[model] or unsaid or {}).items()]
            used.append(
                Used(
                    member=member,
                    uri=uri,
                    learned=_with_patients((uid for uid, side in shown if side not in ("val", "test")), marks),
                    chose=_with_patients((uid for uid, side in shown if side == "val"), marks),
                    silent=tuple(model for model in models if not told[model]),
                )
            )
    return tuple(used)


def _with_patients(series_uids: Iterable[str], marks: Iterable[Mapping[str, str]]) -> frozenset[str]:
    """Some series, and all others of their patients, by any of some tables of series_uid -> mark."""
    given = frozenset(series_uids)
    found = set(given)
    for table in marks:
        theirs = {table[uid] for uid in given if uid in table}
        found |= {uid for uid, mark in table.items() if mark in theirs}
    return frozenset(found)


def learned_origin(home: Home, uri: str) -> Origin | None:
    """What kind of scans a model learned from: synthetic when it, or one that it started from, says so.

    Its run's tag or any series that the run names says so. None where nothing says, as of weights from elsewhere.
    """
    origin: Origin | None = None
    for model in ancestry(home, uri):
        said, scans = registry.origin_of(home, model), tracking.model_scans(home, model)
        if said == "phantom" or any(map(is_phantom_uid, scans)):
            return "phantom"
        origin = "real" if said or scans else origin
    return origin


def ancestry(home: Home, uri: str) -> tuple[str, ...]:
    """A model, those that it started from or whose candidates it learned from, theirs, and so on; itself first."""
    client, found = tracking.client_of(home), [uri]
    for model in found:
        try:
            run_id = client.get_logged_model(model.removeprefix("models:/")).source_run_id
            tags = client.get_run(run_id).data.tags if run_id else {}
        except MlflowException as error:
            if error.error_code not in MISSING:
                raise
            tags = {}
        found += [parent for name, parent in tags.items() if name.startswith(PARENT) and parent not in found]
    return tuple(found)
