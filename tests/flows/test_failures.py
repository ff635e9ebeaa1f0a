"""What a failed run says: one line with advice for what a person can mend, nothing for a slip of ours."""

from __future__ import annotations

import errno

import httpx
import pytest
from mlflow.exceptions import MlflowException

from flows.failures import MAX_WORDS, in_words
from flows.runners import WorkersError
from lungml.errors import FileError
from tasks.child import ChildDied


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileError("a\nb.csv", "no rows", "copy it again"), r"a\nb.csv: no rows; copy it again"),
        (WorkersError("LUNA_WORKERS is 'x'; give threads:N"), "LUNA_WORKERS is 'x'; give threads:N"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/crops"),
            "/data/crops: No space left on device; free some space and run again: finished work is kept",
        ),
        (
            OSError(errno.ENOSPC, "No space"),
            "[Errno 28] No space; free some space and run again: finished work is kept",
        ),
        (OSError(errno.EIO, "Input/output error", "x.raw"), "x.raw: Input/output error"),
        (
            ChildDied("f: the training process ended with SIGKILL"),
            "f: the training process ended with SIGKILL; run again: it goes on from its last checkpoint",
        ),
        (
            httpx.ConnectError("All connection attempts failed"),
            "a Prefect server does not answer; see that it runs, and run again: finished work is kept "
            "(All connection attempts failed)",
        ),
    ],
)
def test_what_a_person_can_mend_is_one_line_with_advice(error: Exception, words: str) -> None:
    assert in_words(error) == words


def test_mlflows_page_of_text_is_cut_to_its_beginning() -> None:
    words = in_words(MlflowException("API request failed: " + "x" * 2000 + "\nRetry-After: 3"))
    assert words is not None
    assert words.startswith("MLflow does not do its part; see that it runs and answers, and run again")
    assert "\n" not in words
    assert "Retry-After" not in words
    assert len(words) < MAX_WORDS + 150


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("a"), AssertionError()])
def test_a_slip_of_ours_is_left_to_its_traceback(error: Exception) -> None:
    assert in_words(error) is None
