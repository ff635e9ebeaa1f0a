"""The environment in which `luna` runs in a test's own process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lungml.home import Home


@contextmanager
def environment_of(home: Home, columns: int) -> Iterator[None]:
    """A home and a terminal's width. The command sets what Prefect and MLflow read; in the end it is all put back."""
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", str(home.root))
        patch.setenv("COLUMNS", str(columns))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield
    os.environ.clear()
    os.environ.update(before)
