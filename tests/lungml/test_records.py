"""Records come back as they were, and a text builds nothing but the record that was asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungml.devices import Hardware
from lungml.job import TrainingJob
from lungml.luna import Annotation, Excluded, Nodule
from lungml.recipes import PARTS, by_name
from lungml.recipes.data import PreparedScan
from lungml.records import RecordError, record_from_text, record_to_text
from lungml.remote import RemoteFolder

floats = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(st.characters())  # lone surrogates too, which odd file names become
points = st.tuples(floats, floats, floats)
paths = texts.filter(lambda text: "\0" not in text).map(Path)
nodules = st.builds(
    Nodule,
    series_uid=texts,
    center_xyz=points,
    diameter_mm=floats,
    malignant=st.booleans(),
    ratings=st.lists(st.integers(1, 5), max_size=4).map(tuple),
)
scans = st.builds(
    PreparedScan,
    series_uid=texts,
    split=st.sampled_from(["train", "val", "test"]),
    store=paths | st.builds(RemoteFolder, st.just("s3://bucket/luna")),
    mask_name=texts,
    crops=paths,
    crops_digest=texts,
    digest=texts,
    nodules=st.lists(nodules, max_size=2).map(tuple),
    excluded=st.lists(st.builds(Excluded, series_uid=texts, center_xyz=points, diameter_mm=floats), max_size=2).map(
        tuple
    ),
    mined=st.none() | paths,
    unrated=st.lists(st.builds(Annotation, series_uid=texts, center_xyz=points, diameter_mm=floats), max_size=1).map(
        tuple
    ),
    textures=st.lists(texts, max_size=2).map(tuple),
)
recipes = st.sampled_from([getattr(by_name(name), part) for name in ("demo", "best", "report") for part in PARTS])
jobs = st.builds(
    TrainingJob,
    stage=st.sampled_from(["segmentation", "classification", "malignancy"]),
    settings=recipes,
    scans=st.lists(scans, max_size=2).map(tuple),
    seed=st.integers(),
    hardware=st.builds(Hardware, device=texts, count=st.integers(1, 8), precision=st.sampled_from(["fp32", "bf16"])),
    identity=st.dictionaries(texts, texts, max_size=3),
    commit=texts,
    sensitivity=st.none() | floats,
)


@given(jobs)
def test_a_job_comes_back_to_the_last_bit(job: TrainingJob) -> None:
    back = record_from_text(TrainingJob, record_to_text(job))
    # `repr` tells NaN from NaN no more, but 1 from 1.0, tuples from lists, and every bit of a float.
    assert repr(back) == repr(job)
    assert type(back.settings) is type(job.settings)


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    name: str = ""
    rate: float = 0.0
    inner: Inner | None = None
    pair: tuple[int, float] | None = None
    kind: Literal["a", "b"] = "a"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise ValueError("rate is above 1")


def test_numpys_scalars_become_numbers_of_the_same_value() -> None:
    record = Outer(rate=np.float64(0.1), pair=(np.int64(3), np.float32(0.1)), inner=Inner(np.int16(-7)))  # type: ignore[arg-type]
    back = record_from_text(Outer, record_to_text(record))
    assert back == record
    assert back.pair is not None
    assert [type(back.rate), *map(type, back.pair)] == [float, int, float]
    assert math.isnan(record_from_text(Outer, record_to_text(Outer(rate=np.float64("nan")))).rate)


def test_what_cannot_come_back_is_not_written() -> None:
    for value in (np.zeros(2), [1], {1: 2}, {"a"}, b"bytes", object(), Inner):
        with pytest.raises(TypeError, match="does not travel"):
            record_to_text(replace(Outer(), name=value))  # type: ignore[arg-type]


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(record_to_text(Outer(inner=Inner(), pair=(1, 2.0)))), **fields})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a Outer"),
        ("[]", "which is no Outer"),
        ("null", "which is no Outer"),
        ('{"record": "Outer"}', "other fields than a Outer: inner, kind, name"),
        (changed(more=1), "other fields than a Outer: more"),
        (changed(record="Inner"), "which is no Outer"),
        (changed(inner={"record": "Popen", "args": "id"}), "Outer.inner"),
        (changed(inner={"record": "Outer", "size": 1}), "Outer.inner"),
        (changed(inner={"record": ["Inner"], "size": 1}), "Outer.inner"),
        (changed(inner={"record": "Inner", "size": True}), "Outer.inner.size is True, which is no int"),
        (changed(inner={"record": "Inner", "size": 1.0}), "Outer.inner.size is 1.0, which is no int"),
        (changed(pair=[1]), "Outer.pair"),
        (changed(pair=[1, "2"]), r"Outer.pair\[1\] is '2', which is no float"),
        (changed(kind="c"), "Outer.kind is 'c'"),
        (changed(kind=["a"]), "Outer.kind"),
        (changed(weights=[1]), "Outer.weights"),
        (changed(weights={"a": None}), "Outer.weights.a is None"),
        (changed(name=1), "Outer.name is 1, which is no str"),
        (changed(rate=2.0), "rate is above 1"),
        ("[" * 100_000, "not a Outer"),
        ('{"record": "Outer", "rate": ' + "9" * 5000 + "}", "not a Outer"),
    ],
)
def test_a_text_that_is_no_such_record_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(RecordError, match=said) as caught:
        record_from_text(Outer, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_every_recipe_has_only_fields_that_travel() -> None:
    for name in ("demo", "best", "report"):
        for part in PARTS:
            settings = getattr(by_name(name), part)
            assert record_from_text(type(settings), record_to_text(settings)) == settings
