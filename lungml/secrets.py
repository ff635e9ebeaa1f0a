"""What in a text must not leave this machine, and how is it made unreadable?"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

MASK = "***"
MIN_CHARACTERS = 6  # a shorter secret is found in URLs and headers only: masking "luna" everywhere hides every word
TOKEN_CHARACTERS = 20  # what stands alone before the @ of a URL is a token from here on, a user's name below
# Environment variables whose values are secrets, by how their names end.
SECRET_NAME = re.compile(
    r"(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|SECRET_KEY|ACCESS_KEY|ACCESS_KEY_ID|ACCOUNT_KEY|AUTH_STRING|"
    r"CONNECTION_STRING|SAS_URL)$",
    re.IGNORECASE,
)
# What stands between :// and @ in a URL; a password may hold a slash where a database's URL is not read strictly.
USER_INFO = re.compile(r"""(?<=://)(?:[^\s/"'<>]*@|[^\s/:"'<>@]+:(?!\d{1,5}/)[^\s"'<>@]*@)""")
QUERY_VALUE = re.compile(
    r"(?<=[?&;])((?:[\w.-]*[-_.])?(?:password|passwd|pwd|token|secret|signature|credential|api[-_]?key|sig))=[^\s&;\"'<>]+",
    re.IGNORECASE,
)
HEADER = re.compile(r"\b(Bearer|Basic)\s+(?=[\w+/=.~-]*[\d=])[\w+/=.~-]{8,}")


def without_secrets(text: str) -> str:
    """The text with credentials in URLs and headers, and the values of secret environment variables, as `***`.

    Args:
        text: any; what is no secret stays as it is. A secret of fewer than `MIN_CHARACTERS` characters is masked where
            it stands in a URL or a header, not elsewhere.
    """
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    text = USER_INFO.sub(f"{MASK}@", text)
    text = QUERY_VALUE.sub(rf"\1={MASK}", text)
    return HEADER.sub(rf"\1 {MASK}", text)


def without_credentials(url: str) -> str:
    """A URL as everybody may see it: no user, password, query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def mask_logs() -> None:
    """Let every log record of this process be made without secrets, whichever handler takes it; twice is once."""
    before = logging.getLogRecordFactory()
    if getattr(before, "masks_secrets", False):
        return

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _masked(before(*args, **kwargs))

    make.masks_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)


def _masked(record: logging.LogRecord) -> logging.LogRecord:
    """The record itself unless it holds a secret: some formatters want the arguments as they were given."""
    try:
        said = record.getMessage()
    except (TypeError, ValueError, KeyError):  # its arguments do not fit; logging says so when it is written
        return record
    masked = without_secrets(said)
    if masked != said:
        record.msg, record.args = masked, ()
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if without_secrets(trace) != trace:
            record.exc_text = without_secrets(trace)  # formatters take it when it is there
    return record


def _known_secrets() -> list[str]:
    """Secret values in the environment, and passwords of URLs there, as they are and as URLs write them."""
    found = set()
    for name, value in os.environ.items():
        given = [value] if SECRET_NAME.search(name) else []
        if "://" in value:
            given += _passwords(value)
        for secret in given:
            found |= {secret, quote(secret, safe=""), unquote(secret)}
    return sorted((secret for secret in found if len(secret) >= MIN_CHARACTERS), key=len, reverse=True)


def _passwords(text: str) -> Iterator[str]:
    for match in USER_INFO.finditer(text):
        user, colon, password = match[0].removesuffix("@").partition(":")
        if colon:
            yield password
        elif len(user) >= TOKEN_CHARACTERS:
            yield user
