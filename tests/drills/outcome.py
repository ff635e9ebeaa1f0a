"""What did a pipeline come to in a home, and does it equal what another one came to?

Read from the files and from MLflow's database themselves, so that luna's own reading is no part of the judgement.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from lungml.home import Home
from tests.drills.moments import PENDING, READY, ask, half_written

SPEED = "samples_per_s"  # the only figure of a training that may differ, with those of the machine
SPLITS = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All of a finished pipeline that must not depend on what happened on the way.

    Attributes:
        weights: model name -> sha256 of the weights of the finished training of that name.
        metrics: run name -> "metric at step" -> value, of the newest finished run of the name; the gate's own row
            aside, which tells what a bundle was judged against.
        bundle: the fields of the bundle that bears `@demo`, models by their weights' sha256.
        scorecards: split -> sha256.
        findings: series -> sha256 of every findings.csv of it, sorted.
    """

    weights: dict[str, str]
    metrics: dict[str, dict[str, float]]
    bundle: dict[str, Any]
    scorecards: dict[str, str]
    findings: dict[str, list[str]]

    @classmethod
    def of(cls, home: Home) -> Outcome:
        """What lies in a home."""
        return cls(
            weights=_weights(home),
            metrics=_metrics(home),
            bundle=_bundle(home),
            scorecards=_scorecards(home),
            findings=_findings(home),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def differences(one: Outcome, other: Outcome) -> list[str]:
    """What of two outcomes differs, a line each; none where they are equal."""
    lines = []
    for part in ("weights", "metrics", "bundle", "scorecards", "findings"):
        a, b = getattr(one, part), getattr(other, part)
        names = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
        lines += [f"{part} of {name} differ" for name in names[:3]]
        lines += [f"{part} of {len(names) - 3} more differ"] if len(names) > 3 else []
    return lines


def loose_ends(home: Home) -> list[str]:
    """What a killed process left that nothing has taken up or cleared away, a line each."""
    lines = []
    statuses = Counter(
        status
        for (status,) in ask(home.mlflow_db, "select status from runs where lifecycle_stage = 'active'")
        if status not in ("FINISHED", "FAILED", "KILLED")
    )
    lines += [f"{count} MLflow runs stay {status}" for status, count in statuses.items()]
    pending = ask(home.mlflow_db, "select count(*) from logged_models where status = ?", PENDING)
    if pending and pending[0][0]:
        lines.append(f"{pending[0][0]} MLflow models stay PENDING")
    halves = half_written(home.root)
    if halves:
        lines.append(f"{len(halves)} half-written files stay, such as {halves[0].name}")
    spool = [path for path in (home.root / "spool").glob("*.jsonl") if path.stat().st_size]
    lines += [f"{len(spool)} spooled runs were not sent"] if spool else []
    return lines


def runs_by_status(home: Home) -> dict[str, int]:
    """How many MLflow runs have which status."""
    return dict(ask(home.mlflow_db, "select status, count(*) from runs group by status"))


def doubles(home: Home) -> list[str]:
    """Models that were kept more than once, a line each."""
    question = "select name, count(*) from logged_models where status = ? group by name having count(*) > 1"
    return [f"{count} models {name} are kept" for name, count in ask(home.mlflow_db, question, READY)]


def _weights(home: Home) -> dict[str, str]:
    found = {}
    for record in home.checkpoints.glob("*/*/finished.json"):
        finished = json.loads(record.read_text())
        model = finished["uri"].removeprefix("models:/")
        for (location,) in ask(home.mlflow_db, "select artifact_location from logged_models where model_id = ?", model):
            files = list(_local(home, location).rglob("weights.safetensors"))
            found[finished["name"]] = _sha256(files[0]) if files else "no weights are there"
    return found


def _metrics(home: Home) -> dict[str, dict[str, float]]:
    question = """select name, run_uuid from runs
        where status = 'FINISHED' and name not like 'gate%' order by start_time"""
    newest = {re.sub(r"^luna-\d+$", "luna-N", name): run_id for name, run_id in ask(home.mlflow_db, question)}
    found = {}
    for name, run_id in newest.items():
        rows = ask(home.mlflow_db, "select key, step, value from metrics where run_uuid = ? and not is_nan", run_id)
        kept = [row for row in rows if row[0] != SPEED and not row[0].startswith("system/")]
        values = {f"{key} at {step}": value for key, step, value in kept}
        if len(set(kept)) != len(values):
            values["points logged with two values"] = float(len(set(kept)) - len(values))
        found[name] = values
    return found


def _bundle(home: Home) -> dict[str, Any]:
    question = """select source from model_versions join registered_model_aliases using (name, version)
        where name = 'luna' and alias = 'demo'"""
    for (source,) in ask(home.mlflow_db, question):
        if source.startswith("models:/"):
            model = source.removeprefix("models:/")
            [(source,)] = ask(home.mlflow_db, "select artifact_location from logged_models where model_id = ?", model)
        for file in _local(home, source).rglob("bundle.json"):
            fields = json.loads(file.read_text())
            kept = {name: value for name, value in fields.items() if name not in ("code", "sha256", *MEMBERS)}
            # Its keys hold the models' ids, which are drawn anew in every home.
            return {**kept, "sha256": sorted(dict(fields["sha256"]).values())}
    return {}


MEMBERS = ("segmentation", "nodule", "malignancy")  # URIs differ from home to home; their files' sha256 do not


def _scorecards(home: Home) -> dict[str, str]:
    question = """select artifact_uri from runs join experiments using (experiment_id)
        where experiments.name = 'luna-end-to-end' and runs.name not like 'gate%' and status = 'FINISHED'
        order by start_time desc limit 1"""
    for (uri,) in ask(home.mlflow_db, question):
        files = {split: _local(home, uri) / split / "scorecard.json" for split in SPLITS}
        return {split: _sha256(file) for split, file in files.items() if file.exists()}
    return {}


def _findings(home: Home) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for file in home.reports.glob("findings/*/*/findings.csv"):
        found.setdefault(file.parent.name, set()).add(_sha256(file))
    return {series: sorted(digests) for series, digests in found.items()}


def _local(home: Home, uri: str) -> Path:
    """Where artifacts lie: files, or what an MLflow server keeps for its clients under the home."""
    parts = urlparse(uri)
    if parts.scheme == "mlflow-artifacts":
        return home.root / "mlartifacts" / parts.path.lstrip("/")
    return Path(unquote(parts.path))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
