"""Where does a bundle, or a model, come from: which run, code, parameters, data and parents?

Everything is read from what the runs and the registry keep. What they do not say is a sentence in `missing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lungml.fit import identity_of
from lungml.home import Home
from lungml.recipes import RecipeError, by_name
from tasks import promotion, registry, runs, tracking
from tasks.recorded import CODE, PARAMETERS
from tasks.registry import BUNDLE_MEMBERS
from tasks.runs import RunFacts

MADE_BY, PIPELINE = "luna.run", "luna.pipeline"  # tags of a bundle's version
# Of a training's parameters, those that are no setting of its recipe.
NO_SETTINGS = ("recipe", "seed", "origin", "device", "devices", "precision")
PARTS = {
    "segmentation": ("segmentation",),
    "classification": ("classification",),
    "malignancy": ("finetuned", "scratch"),
}


@dataclass(frozen=True, kw_only=True)
class ModelLineage:
    """Where one model comes from.

    Attributes:
        uri: of the model.
        run: what made it; None where that is gone or was never kept.
        recipe: by name; empty where it is not known.
        settings: setting -> (the model's, the recipe's of this version of luna), of those that differ.
        parents: stage -> the model that it started from, or whose candidates it learned from.
        missing: a sentence on each thing that nothing says.
    """

    uri: str
    run: RunFacts | None
    recipe: str = ""
    settings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    parents: Mapping[str, ModelLineage] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        run = self.run
        return {
            "uri": self.uri,
            "run": run.run_id if run else None,
            "name": run.name if run else None,
            "stage": run.stage if run else None,
            "pipeline": run.pipeline_id if run else None,
            "commit": run.commit if run else None,
            "environment": run.environment if run else {},
            "recipe": self.recipe or None,
            "seed": run.params.get("seed") if run else None,
            "settings": dict(run.params) if run else {},
            "differs": {name: {"model": one, "recipe": other} for name, (one, other) in self.settings.items()},
            "data": run.told_data() if run else {},
            "parents": {stage: parent.as_dict() for stage, parent in self.parents.items()},
            "missing": list(self.missing),
        }


@dataclass(frozen=True, kw_only=True)
class BundleLineage:
    """Where a bundle comes from.

    Attributes:
        uri: `models:/luna/N`.
        aliases: that it bears.
        decision: of the gate; empty when it was not asked.
        fields: see `registry.check_bundle`.
        run: the end-to-end run that made and judged it; None where nothing says which.
        pipeline_id: the flow run; empty where nothing says which.
        parameters: of that flow run, see `tasks.recorded.told_parameters`; empty where they were not kept.
        code: see `tasks.recorded.code_digests`; empty where it was not kept.
        members: (segmentation, nodule or malignancy; where its model comes from), in the bundle's order.
        tags: of the version.
        missing: a sentence on each thing that nothing says.
    """

    uri: str
    aliases: tuple[str, ...]
    decision: str
    fields: Mapping[str, Any]
    run: RunFacts | None
    pipeline_id: str
    parameters: Mapping[str, Any]
    code: Mapping[str, str]
    members: tuple[tuple[str, ModelLineage], ...]
    tags: Mapping[str, str]
    missing: tuple[str, ...] = ()

    @property
    def commit(self) -> str:
        """Of the code that put it together; empty where it was not known."""
        return str(self.fields.get("code", ""))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        run = self.run
        return {
            "uri": self.uri,
            "aliases": list(self.aliases),
            "gate": self.decision or None,
            "run": run.run_id if run else None,
            "pipeline": self.pipeline_id or None,
            "commit": self.commit or None,
            "environment": run.environment if run else {},
            "parameters": dict(self.parameters),
            "code": dict(self.code),
            "data": run.told_data() if run else {},
            "bundle": dict(self.fields),
            "members": [{"member": member, **model.as_dict()} for member, model in self.members],
            "missing": list(self.missing),
        }


def lineage_of(home: Home, uri: str) -> BundleLineage | ModelLineage:
    """Where `models:/luna/N`, `models:/luna@alias` or `models:/m-...` comes from.

    Raises:
        TrackingError: there is no such bundle or model, or the bundle is not whole.
    """
    if uri.startswith("models:/m-"):
        tracking.download_model(home, uri)
        return model_lineage(home, uri)
    return bundle_lineage(home, uri)


def bundle_lineage(home: Home, uri: str) -> BundleLineage:
    """Where a bundle comes from; errors as of `lineage_of`."""
    uri = promotion.resolve(home, uri)
    listed = promotion.list_bundle(home, uri)
    fields = listed.fields
    tags = runs.facts_of_version(home, uri).tags
    run = runs.facts_of_run(home, tags[MADE_BY]) if MADE_BY in tags else None
    parameters = (runs.read_json(home, run.run_id, PARAMETERS) if run else None) or {}
    code = (runs.read_json(home, run.run_id, CODE) if run else None) or {}
    missing = []
    if MADE_BY not in tags:
        missing.append("nothing says which run made it: it was imported, or an older version of luna made it")
    elif run is None:
        missing.append(f"the run that made it, {tags[MADE_BY]}, is gone")
    elif not parameters:
        missing.append("its run says nothing of its parameters")
    if not fields.get("code"):
        missing.append("no commit of the code is known")
    known: dict[str, ModelLineage] = {}
    return BundleLineage(
        uri=uri,
        aliases=listed.aliases,
        decision=listed.decision,
        fields=fields,
        run=run,
        pipeline_id=tags.get(PIPELINE, "") or (run.pipeline_id if run else ""),
        parameters=parameters,
        code=code,
        members=tuple(
            (member, model_lineage(home, model, known))
            for member in BUNDLE_MEMBERS
            for model in registry.member_uris(fields, member)
        ),
        tags=tags,
        missing=tuple(missing),
    )


def model_lineage(home: Home, uri: str, known: dict[str, ModelLineage] | None = None) -> ModelLineage:
    """Where a model comes from, and those before it; `known` holds what was looked up already, and what is found."""
    known = {} if known is None else known
    if uri in known:
        return known[uri]
    run = runs.facts_of_model(home, uri)
    if run is None:
        lost = ModelLineage(uri=uri, run=None, missing=("its run is gone, or it never had one",))
        return known.setdefault(uri, lost)
    known[uri] = ModelLineage(uri=uri, run=run)  # whatever the tags say, nothing is walked twice
    missing = []
    recipe = run.params.get("recipe", "")
    if not run.data:
        missing.append("its run says nothing of its data")
    if not run.commit:
        missing.append("its run says nothing of the code")
    if "file" in run.params:
        missing.append("it was imported: nothing says how it was trained")
    elif not recipe:
        missing.append("its run says nothing of its recipe")
    settings, note = _beside_recipe(recipe, run) if recipe else ({}, "")
    model = ModelLineage(
        uri=uri,
        run=run,
        recipe=recipe,
        settings=settings,
        parents={stage: model_lineage(home, parent, known) for stage, parent in run.parents.items()},
        missing=(*missing, note) if note else tuple(missing),
    )
    known[uri] = model
    return model


def settings_of(run: RunFacts) -> dict[str, str]:
    """The settings that a training's run was given, as text."""
    return {name: value for name, value in run.params.items() if name not in NO_SETTINGS}


def part_of(run: RunFacts) -> str:
    """Which part of its recipe a training followed: of the two ways to malignancy the run's name says which."""
    parts = PARTS.get(run.stage, ("",))
    return next((part for part in parts if f"-{part}" in run.name), parts[0])


def _beside_recipe(name: str, run: RunFacts) -> tuple[dict[str, tuple[str, str]], str]:
    """The settings in which a training differs from its recipe, and what cannot be told."""
    part = part_of(run)
    if not part:
        return {}, "its run says nothing of its stage"
    try:
        own = identity_of(getattr(by_name(name), part))
    except RecipeError:
        return {}, f"its recipe {name!r} is not one of this version"
    given = settings_of(run)
    differing = {
        setting: (given.get(setting, "none"), own.get(setting, "none"))
        for setting in dict.fromkeys((*given, *own))
        if given.get(setting) != own.get(setting)
    }
    return differing, ""
