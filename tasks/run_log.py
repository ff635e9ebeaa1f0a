"""What does one MLflow run take, and from whom? All of it may wait in the run's spool while MLflow is away."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from lungml.home import Home
from lungml.secrets import without_secrets
from tasks import spooled
from tasks.outbox import Outbox

MAX_TAG_CHARACTERS = 8000  # MLflow refuses longer ones
DIGEST_CHARACTERS = 12  # of a data set's digest, as MLflow's pages show it; all of it is kept as the source
CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}  # MLflow's words for what data are for


@dataclass(frozen=True)
class Run:
    """An open MLflow run.

    Attributes:
        client: waits for MLflow, see `tasks.connection.patiently`.
        home: where its spool lies.
        stage: of which experiment.
        experiment_id: of that.
        run_id: of the run.
        outbox: takes what is logged, whether MLflow answers or not.
    """

    client: MlflowClient
    home: Home
    stage: str
    experiment_id: str
    run_id: str
    outbox: Outbox

    def log_epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Log one epoch's metrics in one request; what is not a number is left out, as MLflow cannot chart it."""
        self.outbox.put(spooled.metrics({name: v for name, v in metrics.items() if not math.isnan(v)}, epoch))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log the run's final metrics."""
        self.log_epoch(metrics, 0)

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as a file of the run, without secrets."""
        self.outbox.put(spooled.text(without_secrets(text), name))

    def log_files(self, folder: Path, under: str = "") -> None:
        """Keep all files of a folder as files of the run, below `under`."""
        self.outbox.put(spooled.files(folder, under))

    def log_figures(self, folder: Path) -> None:
        """Keep a folder of figures, where the run's page shows them as pictures."""
        self.log_files(folder, "figures")

    def log_tag(self, name: str, value: str) -> None:
        """Set a tag; unlike a parameter it may be set again."""
        self.log_settings({}, {name: value})

    def log_settings(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Set parameters, each once and for all, and tags in one request, without secrets."""
        kept = {name: without_secrets(value)[:MAX_TAG_CHARACTERS] for name, value in tags.items()}
        self.outbox.put(spooled.settings({name: without_secrets(value) for name, value in params.items()}, kept))

    def logged_epochs(self, metric: str = "train/loss") -> set[int]:
        """The epochs that a metric was logged for, by whichever process: a resumed training logs each only once."""
        held = {point.step for point in self.client.get_metric_history(self.run_id, metric)}
        waiting = (point for record in self.outbox.waiting() for point in record.points)
        return held | {step for name, _, _, step in waiting if name == metric}

    def log_datasets(
        self,
        name: str,
        digests: Mapping[str, str],
        *,
        sizes: Mapping[str, Mapping[str, int]] | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> None:
        """Record what the run learned from and was judged on, and the models it started from.

        Args:
            name: of the data; each split is a data set `<name>-<split>` of its own.
            digests: split (train, val, test) -> digest of its data.
            sizes: split -> what is counted (scans, nodules) -> how many.
            parents: stage -> `models:/m-...` URI.
        """
        data = [
            _dataset(f"{name}-{split}", digest, CONTEXTS[split], (sizes or {}).get(split, {}))
            for split, digest in digests.items()
        ]
        models = [uri.removeprefix("models:/") for uri in (parents or {}).values()]
        self.outbox.put(spooled.inputs(data, models))
        for stage, uri in (parents or {}).items():
            self.log_tag(f"luna.parent.{stage}", uri)

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.outbox.put(spooled.status(status), insist=True)


def _dataset(name: str, digest: str, context: str, sizes: Mapping[str, int]) -> dict[str, str | None]:
    return {
        "name": name,
        "digest": digest[:DIGEST_CHARACTERS],
        "source": json.dumps({"digest": digest}),
        "profile": json.dumps(dict(sizes)) if sizes else None,
        "context": context,
    }
