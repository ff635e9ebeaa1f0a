"""Credentials in URLs, headers and the environment become `***`; all else stays."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from lungml.secrets import mask_logs, without_secrets

WORD = "s3cr3t-w0rd"


@pytest.fixture(autouse=True)
def factory() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://luna:pw@host:5000/x", "http://***@host:5000/x"),
        ("at postgresql+psycopg2://luna:p/w@db/mlflow now", "at postgresql+psycopg2://***@db/mlflow now"),
        ("http://u:p@ss@host/", "http://***@host/"),
        ("pkg @ git+https://ghp_1234@github.com/a/b", "pkg @ git+https://***@github.com/a/b"),
        ("mysql://h/d?user=x&password=abc&ssl=1", "mysql://h/d?user=x&password=***&ssl=1"),
        ("s3://b/k?X-Amz-Signature=abc", "s3://b/k?X-Amz-Signature=***"),
        ("Authorization: Basic dTpwYXNzd29yZA==", "Authorization: Basic ***"),
        ("two http://a:b@c and http://d:e@f", "two http://***@c and http://***@f"),
    ],
)
def test_credentials_are_masked(text: str, masked: str) -> None:
    assert without_secrets(text) == masked
    assert without_secrets(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b",
        "git+https://github.com/owner/repo@v1.0",
        "sqlite:////home/luna/mlflow.db",
        "models:/luna@champion",
        "write to somebody@example.org about http://example.org",
        "Basic settings, Bearer of news",
        "luna.tokens = 5",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PREFECT_API_KEY", "AWS_SECRET_ACCESS_KEY"]
)
def test_values_of_secret_variables_are_masked_wherever_they_stand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"{WORD}/+")
    assert without_secrets(f"the key {WORD}/+ is wrong, {WORD}%2F%2B too") == "the key *** is wrong, *** too"


def test_a_password_in_a_variable_s_url_is_masked_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://postgres:{WORD}@db/prefect")
    assert without_secrets(f"no entry for postgres with {WORD}") == "no entry for postgres with ***"


def test_short_values_do_not_hide_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "luna")
    assert without_secrets("luna read; http://luna:luna@host") == "luna read; http://***@host"


def test_logs_are_masked_whoever_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", WORD)
    mask_logs()
    mask_logs()
    written, log = io.StringIO(), logging.getLogger("somebody.else")
    handler = logging.StreamHandler(written)
    log.addHandler(handler)
    try:
        log.warning("trying %s at %s", "http://luna:pw@host", WORD)
        try:
            raise RuntimeError(f"401 for {WORD}")
        except RuntimeError:
            log.exception("it failed")
    finally:
        log.removeHandler(handler)
    said = written.getvalue()
    assert said.startswith("trying http://***@host at ***\nit failed\n")
    assert said.rstrip().endswith("RuntimeError: 401 for ***")
    assert WORD not in said


def test_a_record_without_secrets_keeps_its_arguments() -> None:
    mask_logs()
    record = logging.getLogger("a").makeRecord("a", logging.INFO, "f", 1, "%s of %d", ("one", 2), None)
    assert (record.msg, record.args) == ("%s of %d", ("one", 2))
