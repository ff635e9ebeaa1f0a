"""What does a Prefect server say of the runs: which state, and how much was done or found done?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx

PAGE = 200  # rows a request, the server's limit
# The tasks whose finished work must never be repeated.
WORK = (
    "convert_scan", "build_mask", "cache_crops", "train_segmentation", "mine_candidates", "train_classification",
    "train_malignancy", "find_nodules",
)  # fmt: skip
Counts = dict[str, Counter[str]]


def now() -> str:
    """The time as Prefect's filters read it."""
    return datetime.now(UTC).isoformat()


def task_states(api: str, since: str, *, settle_s: float = 1.5) -> Counts:
    """Task -> state -> how many of the task runs that began since; asked until it no longer changes.

    Task runs reach the server behind the flow's own requests, a moment late.
    """
    before: Counts | None = None
    while True:
        counts: Counts = {}
        for run in _pages(api, "task_runs", {"task_runs": {"expected_start_time": {"after_": since}}}):
            task = run["task_key"].rsplit("-", 1)[0].rsplit(".", 1)[-1]
            counts.setdefault(task, Counter())[run["state_name"] or "?"] += 1
        if counts == before:
            return counts
        before = counts
        time.sleep(settle_s)


def flow_states(api: str, since: str) -> list[tuple[str, str]]:
    """(name, state) of the flow runs that began since, the oldest first; subflows too."""
    runs = _pages(api, "flow_runs", {"flow_runs": {"expected_start_time": {"after_": since}}})
    return [(run["name"], run["state_name"]) for run in sorted(runs, key=lambda run: run["expected_start_time"])]


def flow_run(api: str, run_id: str) -> dict[str, Any]:
    """One flow run."""
    answer: dict[str, Any] = httpx.get(f"{api}/flow_runs/{run_id}", timeout=30.0).raise_for_status().json()
    return answer


def ask_for_run(api: str, deployment: str, parameters: Mapping[str, Any]) -> str:
    """Ask a deployment for a run; returns the run's id."""
    found = httpx.get(f"{api}/deployments/name/{deployment}", timeout=30.0).raise_for_status().json()
    url = f"{api}/deployments/{found['id']}/create_flow_run"
    body = {"parameters": dict(parameters), "state": {"type": "SCHEDULED"}, "enforce_parameter_schema": True}
    return str(httpx.post(url, json=body, timeout=30.0).raise_for_status().json()["id"])


def repeated(done: Counts, allowed: Mapping[str, int]) -> list[str]:
    """Which tasks did more work than the undisturbed run did, a line each."""
    lines = []
    for task in WORK:
        completed = done.get(task, Counter())["Completed"]
        if completed > allowed[task]:
            lines.append(f"{task} was done {completed} times, {allowed[task]} would have been enough")
    return lines


def in_words(counts: Counts) -> str:
    """How much of the work was done and how much found done."""
    done = sum(counts.get(task, Counter())["Completed"] for task in WORK)
    kept = sum(counts.get(task, Counter())["Cached"] for task in WORK)
    return f"{kept} tasks Cached, {done} Completed"


def _pages(api: str, kind: str, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while True:
        body = {**wanted, "limit": PAGE, "offset": len(rows)}
        page = httpx.post(f"{api}/{kind}/filter", json=body, timeout=30.0).raise_for_status().json()
        rows += page
        if len(page) < PAGE:
            return rows
