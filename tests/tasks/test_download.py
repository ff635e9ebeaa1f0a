from __future__ import annotations

import logging
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger
from prefect.states import State

from lungml import download as fetching
from lungml.luna_archives import Downloaded
from tasks import download as module
from tests.lungml.fixtures.loopback import Trick, luna_files, serving


def test_brought_then_kept(tmp_path: Path) -> None:
    with serving(luna_files()) as server, disable_run_logger():
        brought = module.download.fn(tmp_path, server.settings(), (0, 8))
        assert isinstance(brought, Downloaded)
        assert brought.unpacked == 10
        again = module.download.fn(tmp_path, server.settings(), (0, 8))
        assert isinstance(again, State)
        assert again.name == "Cached"
        assert again.result().subsets == (0, 8)


def test_a_few_lines_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("download"))
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    (tmp_path / "annotations.csv").write_text("mine\n")
    with serving(luna_files()) as server, caplog.at_level(logging.INFO, "download"):
        server.tricks["subset1.zip"] = [Trick(break_after=100)]
        module.download.fn(tmp_path, server.settings(), (1,))
    lines = [record.message for record in caplog.records if record.name == "download"]
    assert any(line.startswith("downloading: 0.0 of 0.0 GB, ") for line in lines)
    assert "subset1.zip: 0.0 MB fetched and proved" in lines
    assert any("is not the published one and stays" in line for line in lines)


def test_prefect_repeats_nothing() -> None:
    assert module.download.retries == 0


def test_a_failure_is_one_line(tmp_path: Path) -> None:
    with serving({}) as server, disable_run_logger(), pytest.raises(fetching.DownloadError, match="no files"):
        module.download.fn(tmp_path, server.settings(), (0,))
