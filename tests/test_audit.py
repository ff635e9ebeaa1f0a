"""`make audit` fails for what an upgrade mends, and for nothing else."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests import audit

CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "not on the index"}


def found(fix: list[str], *, aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    vulnerability = {"id": "PYSEC-1", "fix_versions": fix, "aliases": list(aliases)}
    return {"name": "pillow", "version": "1.0", "vulns": [vulnerability]}


def test_a_vulnerability_with_a_fix_fails_and_names_package_id_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge([CLEAN, found(["1.1", "2.0"])], {}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "pillow 1.0: PYSEC-1, fixed in 1.1, 2.0",
        "2 packages audited, 1 to upgrade",
    ]


def test_one_without_a_fix_is_said_and_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge([found([])], {}) == 0
    assert "PYSEC-1, no fix yet" in capsys.readouterr().out


def test_one_that_is_accepted_under_any_of_its_names_gives_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge([found(["1.1"], aliases=("CVE-1",))], {"CVE-1": "we read no such files"}) == 0
    assert "accepted: we read no such files" in capsys.readouterr().out


def test_an_exception_that_is_needed_no_more_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge([CLEAN], {"CVE-1": "we read no such files"}) == 0
    assert "CVE-1 is accepted and found no more" in capsys.readouterr().out


def test_an_index_without_advisories_is_not_taken_for_good_news(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge([SKIPPED, {"name": "luna-pipeline", "version": "1", "vulns": []}], {}) == 0
    assert capsys.readouterr().out == "not audited: the index has advisories on none of 1 packages\n"
    assert audit.judge([SKIPPED, CLEAN], {}) == 0
    assert "1 packages audited, 0 to upgrade; not audited: torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (subprocess.TimeoutExpired("pip-audit", 60), "no answer within 60 s"),
        (subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nConnectionError: no route\n\n"), "no route"),
        (subprocess.CompletedProcess([], 2, stdout="[]", stderr=""), "exit status 2"),
        (subprocess.CompletedProcess([], 0, stdout=json.dumps({"dependencies": [SKIPPED]}), stderr=""), "none of 1"),
    ],
)
def test_where_nobody_answers_one_line_says_so_and_the_build_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Any, said: str
) -> None:
    def run(*_: Any, **options: Any) -> Any:
        assert options["timeout"] == audit.TIMEOUT_S
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("not audited: ")
    assert said in line


def test_every_accepted_vulnerability_has_a_reason() -> None:
    assert all(len(reason) > 20 for reason in audit.ACCEPTED.values())
