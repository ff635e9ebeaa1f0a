"""Two runs at once stand before the gate: the slower one is judged against the bundle of the faster one."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import evaluate as module
from lungml.home import Home
from tasks.pipeline import Pipeline
from tasks.promotion import OvertakenError


def test_who_is_overtaken_is_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, faster = "models:/luna/1", "models:/luna/2"
    before: list[str | None] = [None, faster]  # what stands there, each time it is looked at
    judged: list[tuple[str | None, Any]] = []

    def gate(challenger: str, standing: str | None, samples: Any, its_samples: Any, **_: Any) -> str:
        judged.append((standing, its_samples))
        if standing is None:
            raise OvertakenError(f"@demo is {faster} by now, {challenger} was judged against nobody; judge it again")
        return "refused"

    def standing_bundle(_uri: str, _pipeline: Pipeline) -> Any:
        name = before.pop(0)
        return SimpleNamespace(name=name) if name else None

    def score_split(split: str, _scans: Any, _found: Any, _aside: Any, bundle: Any, _pipeline: Any) -> Any:
        card = SimpleNamespace(samples=f"of {bundle.name}", series_uids=(), set_aside=())
        return SimpleNamespace(split=split, card=card, cases=(), table=SimpleNamespace(malignant=0))

    nothing = dict.fromkeys(
        ("find_split", "report_evaluation", "watch_drift", "log_end_to_end", "describe_bundle", "data_name"),
        lambda *_, **__: (),
    )
    fakes = {
        **nothing,
        "gate": gate,
        "standing_bundle": standing_bundle,
        "score_split": score_split,
        "to_beat": lambda *_: faster,
        "summarize_evaluation": lambda *_, **__: None,
        "get_run_logger": lambda: logging.getLogger("test"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    monkeypatch.setattr(module.NamedBundle, "of", lambda _home, uri: SimpleNamespace(name=uri, slug="luna-1"))
    pipeline = Pipeline(home=Home(tmp_path), pipeline_id="p", origin="phantom", seed=0)
    result = module.evaluate.fn([], [], ours, [], pipeline)
    assert judged == [(None, None), (faster, f"of {faster}")]
    assert result.decision == "refused"
