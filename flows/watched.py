"""What do those who watch a flow run get to see: the library's own words, and what is wrong in one line?"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.context import FlowRunContext
from prefect.states import Failed

from flows.failures import in_words
from flows.settings import hear_the_library
from lungml.home import Home
from tasks.in_use import using

P = ParamSpec("P")
R = TypeVar("R")


def watched(body: Callable[P, R]) -> Callable[P, R]:
    """A flow's body that says what can be said; it stands between `@flow` and the function.

    lungml's and the tasks' own log lines reach the run's page, whoever started the process. A failure that a person
    can mend becomes the run's state message, that line alone; whoever called the flow gets the error itself. Any
    other failure is left to Prefect, which keeps its traceback. Meanwhile the home counts as in use. Outside a flow run
    the body is as it was.
    """

    @functools.wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        if FlowRunContext.get() is None:
            return body(*args, **kwargs)
        hear_the_library()
        try:
            with using(Home.from_env()):  # meanwhile `luna data sweep` removes nothing
                return body(*args, **kwargs)
        except Exception as error:
            words = in_words(error)
            if words is None:
                raise
            return Failed(message=words, data=error)

    # Prefect looks up the names in annotations where the function it was given comes from: here they are looked up.
    run.__signature__ = inspect.signature(body, eval_str=True)  # type: ignore[attr-defined]
    return run
