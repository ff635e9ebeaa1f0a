"""Is a file of corrections exactly what the page of `luna read` writes, and what does it say?"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, cast, get_args

from lungml.errors import LunaError, one_line
from lungml.luna import MAX_DIAMETER_MM

FORMAT, FORMAT_VERSION = "luna-corrections", 1
Kind = Literal["accept", "reject", "relabel", "add", "note"]
Label = Literal["benign", "malignant"]
NODULE_KINDS = ("accept", "relabel", "add")  # they say: here is a nodule
MAX_CORRECTIONS, MAX_TEXT, MAX_FINDING = 5000, 2000, 10**6
MAX_BYTES = 2**25  # of a file: what the limits above come to, and more
FARTHEST_MM = 10_000.0  # from a scanner's origin
FILE_KEYS = ("format", "version", "series_uid", "bundle", "reader", "exported", "corrections")
OPTIONAL_FILE_KEYS = ("reading",)
KEYS = ("kind", "time", "finding", "center_xyz", "diameter_mm", "label", "text")
OPTIONAL_KEYS = ("bundle",)
READER_WORDS = "an alias of 1 to 32 letters, digits, dots, dashes and underscores; --reader gives one"
READER = r"[A-Za-z0-9._-]{1,32}"
BUNDLE = r"models:/luna/[1-9][0-9]{0,8}"
SERIES = r"[A-Za-z0-9._-]{1,64}"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z"


class CorrectionError(LunaError):
    """A file of corrections that cannot be taken; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What a reader said of one place.

    Attributes:
        kind: "accept", "relabel" and "add" say that it is a nodule, "reject" that it is none; "note" says neither.
        time: when, UTC.
        finding: its number in findings.json, from 1 on; None where nothing had been found.
        center_xyz: mm, LPS.
        diameter_mm: None where it is not known.
        label: what kind of nodule; None where the reader does not say.
        text: a note, possibly empty.
        bundle: whose finding it is: `models:/luna/N`.
    """

    kind: Kind
    time: str
    finding: int | None
    center_xyz: tuple[float, float, float]
    diameter_mm: float | None
    label: Label | None
    text: str
    bundle: str

    @property
    def nodule(self) -> bool:
        """Whether it says that here is one."""
        return self.kind in NODULE_KINDS


@dataclass(frozen=True, kw_only=True)
class CorrectionFile:
    """One reader's corrections of one scan, as exported.

    Attributes:
        series_uid: of the scan.
        bundle: that read it; the first of two that are compared.
        reader: an alias.
        exported: when, UTC, by the clock of the reader's computer.
        corrections: all that the page held then.
        reading: when the page was written, UTC: two files of one reading are two states of the same work; None where
            the file does not say.
    """

    series_uid: str
    bundle: str
    reader: str
    exported: str
    corrections: tuple[Correction, ...]
    reading: str | None = None

    @property
    def exported_at(self) -> datetime:
        """When it was exported; as a text, a second with a fraction would come before that second."""
        return datetime.fromisoformat(self.exported)

    @cached_property
    def content(self) -> str:
        """A fingerprint of everything but the time of the export."""
        said = {**self.as_dict(), "exported": None}
        return hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode()).hexdigest()

    @property
    def bundles(self) -> tuple[str, ...]:
        """Every bundle whose findings it is about, its own first."""
        return tuple(dict.fromkeys((self.bundle, *(one.bundle for one in self.corrections))))

    def as_dict(self) -> dict[str, Any]:
        """As the page writes it; each correction names its bundle."""
        # By hand: `asdict` copies deeply, and versions are told apart by the content of all of them.
        own = {name: getattr(self, name) for name in ("series_uid", "bundle", "reader", "exported")}
        if self.reading is not None:
            own["reading"] = self.reading
        rows = [{**vars(one), "center_xyz": list(one.center_xyz)} for one in self.corrections]
        return {"format": FORMAT, "version": FORMAT_VERSION, **own, "corrections": rows}


def parse_corrections(given: bytes, reader: str | None = None) -> CorrectionFile:
    """A file that the page exported, every value of it checked.

    Args:
        given: its bytes.
        reader: an alias that takes the place of the file's.

    Raises:
        CorrectionError: naming the first thing that is not as it must be.
    """
    if len(given) > MAX_BYTES:
        raise CorrectionError(f"{len(given):,} bytes are no page's corrections; at most {MAX_BYTES:,}")
    try:
        held = plain_json(given.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorrectionError(one_line(f"not JSON: {str(error) or 'nested too deep'}")) from error
    if isinstance(held, dict) and reader is not None:
        held["reader"] = reader
    return check_given(held)


def check_given(held: Any) -> CorrectionFile:
    """The file behind its JSON; errors as of `parse_corrections`."""
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise CorrectionError(f"no file of corrections: its format is not {FORMAT!r}")
    if type(held.get("version")) is not int or held["version"] != FORMAT_VERSION:
        raise CorrectionError(f"its version is {_shown(held.get('version'))}, this luna reads version {FORMAT_VERSION}")
    _check_keys(held, FILE_KEYS, OPTIONAL_FILE_KEYS, "the file")
    rows = held["corrections"]
    if not isinstance(rows, list) or len(rows) > MAX_CORRECTIONS:
        many = f"{len(rows):,}" if isinstance(rows, list) else _shown(rows)
        raise CorrectionError(f"corrections is {many}, not a list of at most {MAX_CORRECTIONS:,}")
    file = CorrectionFile(
        series_uid=_text(held, "series_uid", SERIES, "a series uid"),
        bundle=_text(held, "bundle", BUNDLE, "a bundle such as models:/luna/3"),
        reader=_text(held, "reader", READER, READER_WORDS),
        exported=_time(held, "exported"),
        corrections=(),
        reading=_time(held, "reading") if "reading" in held else None,
    )
    return replace(file, corrections=tuple(_correction(row, file, n) for n, row in enumerate(rows, start=1)))


def plain_json(text: str) -> Any:
    """JSON without NaN and infinities, and without a key twice.

    Raises:
        ValueError: it is none.
    """
    return json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{_shown(next(name for name in names if names.count(name) > 1))} stands there twice")
    return held


def _correction(row: Any, file: CorrectionFile, number: int) -> Correction:
    """One row, checked; `number` is for words."""
    try:
        return _checked(row, file)
    except CorrectionError as error:
        raise CorrectionError(f"correction {number}: {error}") from None


def _checked(row: Any, file: CorrectionFile) -> Correction:
    if not isinstance(row, dict):
        raise CorrectionError(f"{_shown(row)} is no correction")
    _check_keys(row, KEYS, OPTIONAL_KEYS, "it")
    kind, label = row["kind"], row["label"]
    if kind not in get_args(Kind):
        raise CorrectionError(f"kind is {_shown(kind)}, not one of {', '.join(get_args(Kind))}")
    if label is not None and label not in get_args(Label):
        raise CorrectionError(f"label is {_shown(label)}, not one of {', '.join(get_args(Label))} or null")
    if kind == "relabel" and label is None:
        raise CorrectionError("relabel needs a label, benign or malignant")
    if kind == "reject" and label is not None:
        raise CorrectionError("reject has no label: what is no nodule is not benign")
    center = row["center_xyz"]
    if not isinstance(center, list) or len(center) != 3:
        raise CorrectionError(f"center_xyz is {_shown(center)}, not three numbers of mm")
    x, y, z = (_number(mm, "center_xyz") for mm in center)
    if max(abs(x), abs(y), abs(z)) > FARTHEST_MM:
        raise CorrectionError(f"center_xyz is {_shown(center)}: no scan reaches that far")
    text = row["text"]
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise CorrectionError(f"text is no note of at most {MAX_TEXT:,} characters")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise CorrectionError("text holds half a character, which nothing can write again")
    return Correction(
        kind=cast(Kind, kind),
        time=_time(row, "time"),
        finding=_finding(row["finding"], kind),
        center_xyz=(x, y, z),
        diameter_mm=_diameter(row["diameter_mm"], kind),
        label=cast("Label | None", label),
        text=text,
        bundle=_text(row, "bundle", BUNDLE, "a bundle such as models:/luna/3") if "bundle" in row else file.bundle,
    )


def _finding(finding: Any, kind: str) -> int | None:
    if finding is None and kind in ("add", "note"):
        return None
    if kind == "add":
        raise CorrectionError(f"finding is {_shown(finding)}: what is added was not found, so it must be null")
    if type(finding) is not int or not 1 <= finding <= MAX_FINDING:
        raise CorrectionError(f"finding is {_shown(finding)}, not the number of a finding")
    return finding


def _diameter(diameter: Any, kind: str) -> float | None:
    if diameter is None:
        if kind == "add":
            raise CorrectionError("add needs a diameter_mm")
        return None
    diameter_mm = _number(diameter, "diameter_mm")
    if not 0 < diameter_mm <= MAX_DIAMETER_MM:
        raise CorrectionError(f"diameter_mm is {_shown(diameter)}, not above 0 and at most {MAX_DIAMETER_MM:g}")
    return diameter_mm


def _number(value: Any, name: str) -> float:
    """A float of an integer or a float; a boolean is neither."""
    if type(value) not in (int, float) or abs(value) > 1e12 or not math.isfinite(value):
        raise CorrectionError(f"{name} holds {_shown(value)}, which is no number of mm")
    return float(value)


def _text(held: Mapping[str, Any], name: str, pattern: str, wanted: str) -> str:
    value = held[name]
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise CorrectionError(f"{name} is {_shown(value)}, not {wanted}")
    return value


def _time(held: Mapping[str, Any], name: str) -> str:
    value = _text(held, name, TIME, "a time in UTC such as 2026-01-31T12:00:00Z")
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise CorrectionError(f"{name} is {_shown(value)}, a time that no calendar has") from None
    return value


def _check_keys(held: Mapping[str, Any], wanted: tuple[str, ...], optional: tuple[str, ...], what: str) -> None:
    unknown = [name for name in held if name not in (*wanted, *optional)]
    if unknown:
        raise CorrectionError(f"{what} has the unknown key {_shown(unknown[0])}")
    lacking = [name for name in wanted if name not in held]
    if lacking:
        raise CorrectionError(f"{what} lacks {lacking[0]}")


def _shown(value: Any) -> str:
    """A value as it stands in the file, not too much of it, on one line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return one_line(text if len(text) <= 60 else f"{text[:57]}...")
