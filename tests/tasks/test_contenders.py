"""Bundles to be judged: named ones, the one that stands in where none is named, and models that no bundle holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lungml.candidates import GroupingError
from lungml.home import Home
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.recipes import best
from tasks import registry, tracking
from tasks.bundles import stage_example
from tasks.contenders import LooseModels, contenders, default_bundle, loose_bundle
from tasks.tracking import TrackingError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path_factory.mktemp("contenders"))


def log(home: Home, stage: str, seed: int, **tags: str) -> str:
    generator = torch.Generator().manual_seed(seed)
    model = UNet(generator=generator) if stage == "segmentation" else NoduleNet(generator=generator)
    with tracking.open_run(home, stage, name="toy", tags=tags, sample_every_s=None) as run:
        arch = {"stage": stage, "config": asdict(model.config)}
        return tracking.log_model(run, model, arch=arch, example=stage_example(model), name="toy")


@pytest.fixture(scope="module")
def uris(home: Home) -> dict[str, str]:
    return {
        stage: log(home, stage, seed) for seed, stage in enumerate(("segmentation", "classification", "malignancy"))
    }


@pytest.fixture(scope="module")
def loose(uris: dict[str, str]) -> LooseModels:
    return LooseModels(**{stage: (uri,) for stage, uri in uris.items()})


@pytest.fixture(scope="module")
def registered(home: Home, uris: dict[str, str]) -> str:
    fields: dict[str, Any] = {
        "segmentation": uris["segmentation"],
        "nodule": uris["classification"],
        "malignancy": uris["malignancy"],
        "grouping": asdict(best().grouping),
        "nodule_threshold": 0.4,
        "malignant_threshold": 0.6,
        "recipe": "toy",
        "origin": "phantom",
    }
    return registry.register_bundle(home, fields)


def versions(home: Home) -> dict[str, int]:
    return {model.name: len(model.latest_versions) for model in tracking.client_of(home).search_registered_models()}


def test_loose_models_form_a_bundle_that_is_not_registered(
    home: Home, registered: str, loose: LooseModels, uris: dict[str, str]
) -> None:
    before = versions(home)
    bundle = loose_bundle(home, loose)
    assert versions(home) == before
    assert bundle.fields["nodule"] == uris["classification"]
    assert (bundle.fields["nodule_threshold"], bundle.fields["malignant_threshold"]) == (0.5, 0.5)
    assert bundle.fields["grouping"] == asdict(best().grouping)
    assert (bundle.fields["recipe"], bundle.fields["origin"]) == ("loose", "real")
    assert bundle.build(home, "cpu").nodule_threshold == 0.5
    assert loose_bundle(home, loose) == bundle


def test_a_loose_bundles_name_tells_its_content(home: Home, loose: LooseModels) -> None:
    other = loose_bundle(home, replace(loose, grouping="report"))
    assert other.fields["grouping"]["rule"] == "report"
    names = {loose_bundle(home, loose).name, other.name}
    assert len(names) == 2
    assert all(name.startswith("loose-") for name in names)
    with pytest.raises(GroupingError, match="unknown grouping 'none'"):
        loose_bundle(home, replace(loose, grouping="none"))  # type: ignore[arg-type]


def test_a_version_or_an_alias_means_the_model_it_is_now(
    home: Home, registered: str, loose: LooseModels, uris: dict[str, str]
) -> None:
    client = tracking.client_of(home)
    client.set_registered_model_alias("luna-malignancy", "tried", "1")
    by_name = LooseModels(
        segmentation=("models:/luna-segmentation/1",),
        classification=("models:/luna-classification/1",),
        malignancy=("models:/luna-malignancy@tried",),
    )
    assert loose_bundle(home, by_name) == loose_bundle(home, loose)


def test_what_is_no_model_of_its_kind_is_said(home: Home, loose: LooseModels, uris: dict[str, str]) -> None:
    with pytest.raises(TrackingError, match="is a segmentation model, a malignancy model was asked for"):
        loose_bundle(home, replace(loose, malignancy=(uris["segmentation"],)))
    with pytest.raises(TrackingError, match="models:/m-0: no such model"):
        loose_bundle(home, replace(loose, classification=("models:/m-0",)))
    with pytest.raises(TrackingError, match="names a model twice"):
        loose_bundle(home, replace(loose, classification=(uris["classification"],) * 2))


def test_models_of_synthetic_scans_make_a_bundle_of_such(home: Home, loose: LooseModels, uris: dict[str, str]) -> None:
    drawn = log(home, "classification", 9, **{"luna.origin": "phantom"})
    bundle = loose_bundle(home, replace(loose, classification=(uris["classification"], drawn)))
    assert bundle.fields["origin"] == "phantom"
    assert bundle.fields["nodule"] == [uris["classification"], drawn]
    assert len(bundle.build(home, "cpu").nodule) == 2


def test_loose_models_are_judged_after_the_named_bundles(home: Home, registered: str, loose: LooseModels) -> None:
    one, other = contenders(home, [registered], loose)
    assert (one.name, one.fields["nodule_threshold"]) == (registered, 0.4)
    assert other == loose_bundle(home, loose)
    assert contenders(home, [registered, registered]) == (one, one)
    with pytest.raises(TrackingError, match="models:/luna/99: no such bundle"):
        contenders(home, [registered, "models:/luna/99"])


@pytest.fixture
def aliases(home: Home, registered: str) -> Iterator[Callable[[str], None]]:
    client = tracking.client_of(home)
    given: list[str] = []

    def give(alias: str) -> None:
        client.set_registered_model_alias("luna", alias, registered.rpartition("/")[2])
        given.append(alias)

    yield give
    for alias in given:
        client.delete_registered_model_alias("luna", alias)


def test_the_champion_stands_in_where_no_bundle_is_named_else_the_demo(
    home: Home, registered: str, aliases: Callable[[str], None]
) -> None:
    with pytest.raises(TrackingError, match=r"no bundle is @champion or @demo in sqlite:.*; name one") as said:
        default_bundle(home)
    assert "\n" not in str(said.value)
    aliases("demo")
    assert default_bundle(home) == (registered, "demo")
    aliases("champion")
    assert default_bundle(home) == (registered, "champion")
