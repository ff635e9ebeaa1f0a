"""At which address does MLflow's UI show a run, a model or a bundle?"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from lungml.home import Home
from lungml.secrets import without_credentials
from tasks import tracking
from tasks.registry import BUNDLE_NAME

MLFLOW_URL = "LUNA_MLFLOW_URL"  # of the UI, where the tracking URI is none that a browser opens; `luna up` sets it
OF_MODELS = "workflowType=machine_learning"  # else MLflow's pages open as those of language models
UNLINKED = (
    f"MLflow's pages are not linked: nothing says where its UI is. `luna up` opens one; for another, set {MLFLOW_URL} "
    "to its address before a run."
)


@dataclass(frozen=True, kw_only=True)
class Links:
    """Markdown links into MLflow's UI; plain text where nobody knows where that is.

    Attributes:
        home: where runs lie.
        base: of the UI, without a slash at its end; None when it is not known.
    """

    home: Home
    base: str | None

    @classmethod
    def of(cls, home: Home) -> Links:
        """By LUNA_MLFLOW_URL, or by the tracking URI where that is one for a browser; never with its credentials."""
        given = os.environ.get(MLFLOW_URL) or tracking.tracking_uri(home)
        return cls(home=home, base=_for_browsers(given))

    def run(self, stage: str, run_id: str, text: str) -> str:
        """A link to a run of a stage."""
        return self._link(text, lambda: f"experiments/{self._experiment(stage)}/runs/{run_id}")

    def model(self, stage: str, uri: str) -> str:
        """A link to a model of a stage, `models:/m-...`."""
        return self._link(uri, lambda: f"experiments/{self._experiment(stage)}/models/{uri.removeprefix('models:/')}")

    def bundle(self, uri: str) -> str:
        """A link to a registered bundle, `models:/luna/N`."""
        return self._link(uri, lambda: f"models/{BUNDLE_NAME}/versions/{uri.rpartition('/')[2]}")

    def _experiment(self, stage: str) -> str:
        return tracking.experiment_id_of(self.home, stage)

    def _link(self, text: str, page: Callable[[], str]) -> str:
        return f"`{text}`" if self.base is None else f"[{text}]({self.base}/#/{page()}?{OF_MODELS})"


def _for_browsers(url: str) -> str | None:
    """The address alone, if it is one of HTTP: no name, no password, no query."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return without_credentials(url).rstrip("/")
