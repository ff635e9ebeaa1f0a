"""What does Prefect keep of a flow's parameters, where they are the records of all scans?

A run's parameters are stored with it, shown on its page, and refused beyond half a megabyte: LUNA16's 888 scans come to
more. So of a flow that other flows call with such records, long parameters are stored as what and how many they were.
The flow itself gets them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar

from prefect import Flow

P = ParamSpec("P")
R = TypeVar("R")

LONG_ITEMS, LONG_CHARACTERS = 20, 5_000


class InnerFlow(Flow[P, R]):
    """A flow that is called by flows; its run can be repeated by its caller only, who has the parameters."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as Prefect stores them: JSON, long ones in words."""
        # Many records are not even turned into JSON: that alone takes a second for LUNA16.
        many = {name: _in_words(value) for name, value in parameters.items() if _is_many(value)}
        rest = super().serialize_parameters({name: value for name, value in parameters.items() if name not in many})
        for name, stored in rest.items():
            if len(json.dumps(stored, default=str)) > LONG_CHARACTERS:
                rest[name] = _in_words(parameters[name])
        return {name: many.get(name, rest.get(name)) for name in parameters}


def inner_flow(**settings: Any) -> Callable[[Callable[P, R]], InnerFlow[P, R]]:
    """What `@flow(...)` is, for flows that other flows call with many records; they are not checked once more."""
    return partial(InnerFlow, validate_parameters=False, **settings)


def _is_many(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) > LONG_ITEMS


def _in_words(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value):
        return f"{len(value)} x {type(value[0]).__name__}"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    return f"<{type(value).__name__}>"
