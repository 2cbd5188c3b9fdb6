"""Dataclasses as JSON values and back: every field of the kind that its type says, or an error with its path.

JSON out of a file can hold anything. A field of another kind than declared would fail somewhere else,
in a way that says nothing about the file.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class LeftOut:
    """Marks a field that is not in the JSON where it, and the field ``beside`` it, is ``None``."""

    beside: str = ""


IfKnown = Annotated[T | None, LeftOut()]
"""A value that is not in the JSON where it is ``None``."""
STATED = {"stated": True}
"""For the metadata of a field that has a default for whoever makes the record, but not in JSON."""
MAX_DEPTH = 50
"""Deeper than anything that is written; copying and showing it again is recursive."""
# No count and no measurement is larger, and beyond it numbers cannot be formatted.
_MOST = 2**63


def converted(
    read: Callable[[Any], object], write: Callable[[Any], object]
) -> dict[str, Callable[[Any], object]]:
    """For the metadata of a field with a form of its own in JSON; ``read`` raises ValueError."""
    return {"read": read, "write": write}


def to_values(value: Any) -> Any:
    """A dataclass, and what is in it, as plain objects, lists, strings and numbers."""
    if is_dataclass(value):
        kind: Any = type(value)
        return {
            name: _written(part, getattr(value, name))
            for name, (part, _, left_out) in _hints(kind).items()
            if not (left_out and _is_absent(value, name, left_out))
        }
    if isinstance(value, Mapping):
        return {key: to_values(each) for key, each in value.items()}
    return [to_values(each) for each in value] if isinstance(value, (list, tuple)) else value


def from_values(kind: type[T], data: Any, where: str = "", depth: int = 0) -> T:
    """The dataclass that :func:`to_values` made ``data`` from; ``where`` is the path to it.

    ``depth``: how many values it lies in.

    Raises:
        ValueError: a field is missing, unknown, of another kind, or nested more than 50 levels deep;
            or what the dataclass itself raises for values that cannot be meant.
    """
    _require(isinstance(data, dict), where or "it", "an object")
    known: Any = kind
    inside, hints = f"{where}." if where else "", _hints(known)
    for name in data:
        if name not in hints:
            raise ValueError(f"{_shown(inside + str(name))} is not known")
    values = {}
    for name, (part, hint, _) in hints.items():
        if name in data:
            values[name] = _field(part, hint, data[name], inside + name, depth)
        elif part.init and _is_required(part):
            raise ValueError(f"{_shown(inside + name)} is missing")
    try:
        return kind(**{name: value for name, value in values.items() if hints[name][0].init})
    except ValueError as error:
        raise ValueError(f"{_shown(where)}: {error}") from error


@cache
def _hints(kind: Any) -> dict[str, tuple[Field[Any], Any, LeftOut | None]]:
    """The fields of a dataclass with their types, and how they are left out."""
    hints = get_type_hints(kind, include_extras=True)
    return {part.name: (part, *_unmarked(hints[part.name])) for part in fields(kind)}


def _unmarked(hint: Any) -> tuple[Any, LeftOut | None]:
    return get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)


def _field(part: Field[Any], hint: Any, value: Any, where: str, depth: int) -> Any:
    if "read" not in part.metadata:
        return _value(value, hint, where, depth)
    try:
        return None if value is None else part.metadata["read"](value)
    except ValueError as error:
        raise ValueError(f"{_shown(where)}: {error}") from error


def _value(value: Any, hint: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"{_shown(where)} is nested more than {MAX_DEPTH} levels deep")
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        _check_depth(value, where, depth)
    elif origin in (Union, types.UnionType):
        return _union(value, args, where, depth)
    elif origin is Literal:
        _require(value in args, where, " or ".join(map(str, args)))
    elif origin in (list, tuple):
        _require(isinstance(value, list), where, "a list")
        kinds = args if origin is tuple and args[-1] is not Ellipsis else (args[0],) * len(value)
        _require(len(kinds) == len(value), where, f"a list of {len(kinds)}")
        return origin(
            _value(each, kind, f"{where}[{index}]", depth + 1)
            for index, (each, kind) in enumerate(zip(value, kinds, strict=True))
        )
    elif origin is dict:
        _require(isinstance(value, dict), where, "an object")
        _require(all(isinstance(key, str) for key in value), where, "an object with names")
        return {
            key: _value(each, args[1], f"{where}.{key}", depth + 1) for key, each in value.items()
        }
    elif is_dataclass(hint):
        kind: Any = hint
        return from_values(kind, value, where, depth + 1)
    elif hint in (int, float):
        kinds, name = ((int,), "a whole number") if hint is int else ((int, float), "a number")
        _require(isinstance(value, kinds) and not isinstance(value, bool), where, name)
        _require(isinstance(value, float) or abs(value) <= _MOST, where, "a number of that size")
    else:
        name = {str: "text", bool: "true or false"}.get(hint, getattr(hint, "__name__", str(hint)))
        _require(isinstance(value, hint), where, name)
    return value


def _union(value: Any, kinds: tuple[Any, ...], where: str, depth: int) -> Any:
    if value is None and type(None) in kinds:
        return None
    *first, last = (kind for kind in kinds if kind is not type(None))
    for kind in first:
        try:
            return _value(value, kind, where, depth)
        except ValueError:
            continue
    return _value(value, last, where, depth)


def _check_depth(value: Any, where: str, depth: int) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _value(each, Any, where, depth + 1)


def _is_required(part: Field[Any]) -> bool:
    no_default = part.default is MISSING and part.default_factory is MISSING
    return no_default or "stated" in part.metadata


def _is_absent(owner: object, name: str, left_out: LeftOut) -> bool:
    return getattr(owner, name) is None and getattr(owner, left_out.beside or name) is None


def _written(part: Field[Any], value: Any) -> Any:
    own = part.metadata.get("write")
    return to_values(value) if own is None or value is None else own(value)


def _shown(where: str) -> str:
    """A path as part of one line, whatever names are in it."""
    return "".join(each if each.isprintable() else "?" for each in where[:80])


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise ValueError(f"{_shown(where)} is not {what}")
