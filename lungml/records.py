"""How does a record of ours travel to another process as text, and come back the same, without pickle?

The reader is told which dataclass it shall build and builds nothing but that and what its type hints name: whatever a
text says, no other code runs. Numbers come back to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from lungml.errors import LunaError, one_line

Record = TypeVar("Record")
KIND = "record"  # names the dataclass of an object
PLAIN = (str, int, bool, NoneType)


class RecordError(LunaError):
    """A text is not the record that was asked for; the message is one line."""


def record_to_text(record: Any) -> str:
    """A dataclass as JSON.

    Its fields may hold text, numbers (NaN and NumPy's scalars too, which become Python's), booleans, None, paths,
    tuples, mappings with text as keys, and further dataclasses of such fields.

    Raises:
        TypeError: a field holds something else.
    """
    return json.dumps(_plain(record))


def record_from_text(kind: type[Record], text: str) -> Record:
    """The dataclass that `record_to_text` wrote; its own checks run again.

    Raises:
        RecordError: the text is no record of this kind: no JSON, a field missing or unknown, a value of another type,
            or one that the record refuses.
    """
    try:
        return _built(kind, json.loads(text), kind.__name__)
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(one_line(f"not a {kind.__name__}: {error}")) from error


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {KIND: type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return {KIND: "Path", "path": str(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, str | int | float | NoneType):
        return value
    raise TypeError(f"{type(value).__name__} does not travel in a record: {value!r:.80}")


def _built(kind: Any, plain: Any, where: str) -> Any:
    """A value of a type hint from its JSON."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _built(_chosen(inner, plain, where), plain, where)
    if is_dataclass(kind):
        return _built_record(kind, plain, where)
    if kind is Path and isinstance(plain, dict) and plain.keys() == {KIND, "path"} and isinstance(plain["path"], str):
        return Path(plain["path"])
    if origin is Literal and type(plain) in PLAIN and plain in inner:
        return plain
    if origin is tuple and isinstance(plain, list):
        kinds = inner[:1] * len(plain) if inner[1:] == (...,) else inner
        if len(kinds) == len(plain):
            return tuple(_built(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(kinds, plain)))
    if origin is Mapping and isinstance(plain, dict):
        return {name: _built(inner[1], item, f"{where}.{name}") for name, item in plain.items()}
    if _is_of(kind, plain):
        return plain
    raise ValueError(f"{where} is {plain!r:.80}, which is no {getattr(kind, '__name__', kind)}")


def _built_record(kind: Any, plain: Any, where: str) -> Any:
    hints = _hints(kind)
    if not isinstance(plain, dict) or plain.get(KIND) != kind.__name__:
        raise ValueError(f"{where} is {plain!r:.80}, which is no {kind.__name__}")
    if plain.keys() != {KIND, *hints}:
        wrong = ", ".join(sorted(plain.keys() ^ {KIND, *hints}))[:200]
        raise ValueError(f"{where} has other fields than a {kind.__name__}: {wrong}")
    return kind(**{name: _built(hint, plain[name], f"{where}.{name}") for name, hint in hints.items()})


def _chosen(kinds: tuple[Any, ...], plain: Any, where: str) -> Any:
    """Which of several types a value is of; an object says so itself."""
    named = plain.get(KIND) if isinstance(plain, dict) else None
    for kind in kinds:
        if (named == kind.__name__) if isinstance(named, str) else _is_of(kind, plain):
            return kind
    # What is neither an object nor plain (a tuple, a choice of words) is at most one of them.
    rest = [kind for kind in kinds if get_origin(kind) is not None]
    if named is None and len(rest) == 1:
        return rest[0]
    raise ValueError(f"{where} is {plain!r:.80}, which is none of {', '.join(str(kind) for kind in kinds)}")


def _is_of(kind: Any, plain: Any) -> bool:
    # A whole number may stand where a fraction is expected: it comes back as the whole number it was.
    return type(plain) in (int, float) if kind is float else kind in PLAIN and type(plain) is kind


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}
