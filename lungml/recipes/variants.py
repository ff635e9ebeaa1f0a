"""How does one try a recipe with a setting changed, without writing code?"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from lungml.errors import LunaError
from lungml.recipes import PARTS, Recipe, RecipeError, by_name

Settings = TypeVar("Settings")


def recipe_of(name: str, *, budget: float = 1.0, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name, scaled to a budget, with single settings changed (after the scaling).

    Args:
        name: of the recipe.
        budget: factor of both samples per epoch and epochs of every model, see `FitSettings.scaled`.
        overrides: dotted setting -> value, such as {"segmentation.fit.learning_rate": 0.002}; see `with_settings`.

    Raises:
        RecipeError: when there is no such recipe, or no such setting, or the value is refused.
    """
    if not 0 < budget < math.inf:
        raise RecipeError(f"the budget is {budget}, not a positive number")
    recipe = by_name(name)
    if budget != 1:
        recipe = replace(
            recipe,
            **{
                part: replace(settings, fit=settings.fit.scaled(budget))
                for part in PARTS
                for settings in [getattr(recipe, part)]
            },
        )
    return with_settings(recipe, overrides or {})


def with_settings(settings: Settings, overrides: Mapping[str, Any], path: str = "recipe") -> Settings:
    """A copy of a (nested) settings record with some fields changed, all at once: they may depend on each other.

    Args:
        settings: a dataclass.
        overrides: dotted field names -> values; a number may stand for another kind of number, a list for a tuple.
        path: how the record is called in errors.

    Raises:
        RecipeError: when a name is unknown, or the record refuses a value.
    """
    assert is_dataclass(settings)
    known = {field.name for field in fields(settings)}
    inner: dict[str, dict[str, Any]] = {}
    changed: dict[str, Any] = {}
    for name, value in overrides.items():
        head, _, rest = name.partition(".")
        if head not in known or head == "name":
            there = ", ".join(sorted(known - {"name"}))
            raise RecipeError(f"no setting {path}.{head}; choose one of {there}")
        now = getattr(settings, head)
        if rest and not is_dataclass(now):
            raise RecipeError(f"no setting {path}.{name}: {path}.{head} has no settings of its own")
        if not rest and is_dataclass(now):
            inside = ", ".join(f"{head}.{field.name}" for field in fields(now))
            raise RecipeError(f"{path}.{head} is a group of settings; choose one of {inside}")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            changed[head] = _as_kind(value, now, f"{path}.{head}")
    for head, values in inner.items():
        changed[head] = with_settings(getattr(settings, head), values, f"{path}.{head}")
    try:
        return replace(settings, **changed)  # type: ignore[type-var]
    except LunaError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        raise RecipeError(f"{path}: {error}") from error


def parse_overrides(given: list[str]) -> dict[str, Any]:
    """`--set` options as a mapping: "segmentation.loss=report" and so on; values are Python literals, or else text.

    Raises:
        RecipeError: when one has no equals sign, or a setting is given twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise RecipeError(f"--set {text!r}: give SETTING=VALUE, such as classification.fit.batch_size=16")
        if name in found:
            raise RecipeError(f"--set {name} is given twice")
        try:
            found[name] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = value.strip()
    return found


def _as_kind(value: Any, now: Any, path: str) -> Any:
    """The value in the kind of the present one; None, where it is or replaces None, is left to the record's checks."""
    if value is None or now is None:
        return tuple(value) if isinstance(value, list) else value
    if isinstance(now, bool) != isinstance(value, bool):
        raise RecipeError(f"{path} is {now!r}; {value!r} is not of its kind")
    if isinstance(now, float) and isinstance(value, int):
        return float(value)
    if isinstance(now, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    if not isinstance(value, type(now)):
        raise RecipeError(f"{path} is {now!r}; {value!r} is not of its kind")
    return value
