"""Whether what was read from JSON has the types that a dataclass declares.

JSON out of a file can hold anything. A field of another kind than declared would fail somewhere else,
in a way that says nothing about the file.
"""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

# Deeper than anything that is written; copying and showing it again is recursive.
MAX_DEPTH = 50


def check_fields(value: Any, where: str = "") -> None:
    """Check every field of a dataclass instance against its declared type, inner ones as well.

    Raises:
        ValueError: a field is of another kind, or nested more than 50 levels deep.
    """
    kind: Any = type(value)
    for name, hint in _hints(kind).items():
        _check(getattr(value, name), hint, f"{where}{name}", 0)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _check(value: Any, hint: Any, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where[:80]} is nested more than {MAX_DEPTH} levels deep")
    origin = get_origin(hint)
    if hint is Any:
        _check_depth(value, where, depth)
    elif origin in (Union, types.UnionType):
        _check_union(value, get_args(hint), where, depth)
    elif origin is list:
        _require(isinstance(value, list), where, "a list")
        for index, each in enumerate(value):
            _check(each, get_args(hint)[0], f"{where}[{index}]", depth + 1)
    elif origin is dict:
        _require(isinstance(value, dict), where, "an object")
        for key, each in value.items():
            _require(isinstance(key, str), where, "an object with names")
            _check(each, get_args(hint)[1], f"{where}.{key}", depth + 1)
    elif is_dataclass(hint):
        kind: Any = hint
        _require(isinstance(value, kind), where, kind.__name__)
        check_fields(value, f"{where}.")
    elif hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _require(number, where, "a number")
    elif hint is int:
        _require(isinstance(value, int) and not isinstance(value, bool), where, "a whole number")
    else:
        _require(isinstance(value, hint), where, getattr(hint, "__name__", str(hint)))


def _check_union(value: Any, kinds: tuple[Any, ...], where: str, depth: int) -> None:
    if value is None and type(None) in kinds:
        return
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest[:-1]:
        try:
            _check(value, kind, where, depth)
        except ValueError:
            continue
        return
    _check(value, rest[-1], where, depth)


def _check_depth(value: Any, where: str, depth: int) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _check(each, Any, where, depth + 1)


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise ValueError(f"{where[:80]} is not {what}")
