"""Recipes in files: a JSON object of the fields, as the log of a run has it under ``recipe``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from onnx_igpc.errors import UsageError, first_line
from onnx_igpc.report.typed_json import from_values
from onnx_igpc.torch_bridge.training.recipe import BASES, Recipe

_TEXTS = ("augment", "freeze")


def read_recipe(name: str) -> Recipe:
    """``few``, ``some`` or ``many``, or the path of a JSON file; fields that it lacks, or that are null, are left open.

    Raises:
        UsageError: there is no such file, or what it holds is no recipe.
    """
    if name in BASES:
        return Recipe(base=name)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"`base` must be {', '.join(BASES)} or a JSON file, not {name!r}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        texts = {key: values.pop(key) for key in _TEXTS if key in values}
        return replace(from_values(Recipe, values), **texts)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"recipe {path} cannot be read: {first_line(error)}") from error
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from error
