"""Which failures can the person who reads of them mend, and how is one said in a line?"""

from __future__ import annotations

import errno

from lungml.errors import LunaError, one_line

AGAIN = "run again: finished work is kept"
# What goes wrong between us and a service, by the package that says so: none of them is worth an import here.
SERVICES = {
    "mlflow": f"MLflow does not do its part; see that it runs and answers, and {AGAIN}",
    "httpx": f"a Prefect server does not answer; see that it runs, and {AGAIN}",
    "httpcore": f"a Prefect server does not answer; see that it runs, and {AGAIN}",
    "distributed": f"Dask's workers or its scheduler failed; see LUNA_WORKERS and their logs, and {AGAIN}",
}
ADVICE = {
    errno.ENOSPC: f"free some space and {AGAIN}",
    errno.EDQUOT: f"free some of your quota and {AGAIN}",
    errno.EROFS: "set LUNA_HOME to a folder that can be written to",
    errno.EACCES: "let this user read and write it, or name another",
    errno.EMFILE: "allow more open files (ulimit -n), or fewer scans at once (LUNA_WORKERS)",
}
MAX_WORDS = 400  # characters of what a library says, which may be a page


def in_words(error: BaseException) -> str | None:
    """What is wrong and what to do, in one line; None for a slip of ours, of which the traceback tells more.

    Args:
        error: as it was raised; of a library's, its own first line is kept, cut short.
    """
    if isinstance(error, LunaError):
        return one_line(str(error))
    kind = type(error)
    if kind.__name__ == "ChildDied":  # of tasks.child, which is known here only once something was trained
        return one_line(f"{error}; run again: it goes on from its last checkpoint")
    service = SERVICES.get(kind.__module__.partition(".")[0])
    if service:
        return f"{service} ({_first_line(error)})"
    if isinstance(error, OSError):
        advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
        if error.filename and error.strerror:
            return one_line(f"{error.filename}: {error.strerror}{advice}")
        return f"{_first_line(error)}{advice}"
    return None


def _first_line(error: BaseException) -> str:
    """A library's own words, without what a page of them repeats."""
    text = str(error).strip()
    line = one_line(text.splitlines()[0]) if text else type(error).__name__
    return line if len(line) <= MAX_WORDS else f"{line[:MAX_WORDS]}..."
