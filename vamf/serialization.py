"""Converts frozen dataclasses to plain dictionaries and back, for files, parameters and overrides.

If a field may hold one of several dataclasses, its dictionary names the class under ``kind``. If it
may hold anything that has an interface (a protocol), ``kind`` may name a user's own class:
``module:Class`` or ``path/file.py:Class``.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vamf import user_modules

T = TypeVar("T")
KIND = "kind"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error message: `; did you mean 'x'?` or the known names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def to_dict(value: Any, annotation: Any = None) -> Any:
    """A dataclass as nested dictionaries of JSON values, with ``kind`` at every level.

    ``annotation`` is the type of the field that holds it. Raises ValueError for a class of a user's
    own that other processes cannot import.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls, options = type(value), _options(annotation)
        own = cls not in options and any(_is_interface(option) for option in options)
        hints = _hints(cls)
        fields = {
            f.name: to_dict(getattr(value, f.name), hints[f.name])
            for f in dataclasses.fields(value)
        }
        return {KIND: user_modules.name_of(cls) if own else cls.__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_dict(item, _item(annotation)) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(cls: type[T], data: Mapping[str, Any], path: str = "") -> T:
    """Builds ``cls`` from a dictionary of ``to_dict``; missing fields take their defaults.

    Raises ValueError with the dotted name of an unknown field, of one that is missing without a
    default, or of a value of the wrong type.
    """
    if not isinstance(data, Mapping) or data.get(KIND, cls.__name__) != cls.__name__:
        raise ValueError(f"{path or 'it'} must hold the fields of {cls.__name__}; got {data!r:.80}")
    hints = _hints(cls)  # type: ignore[arg-type]
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in data:
        if name not in names and name != KIND:
            raise ValueError(f"unknown setting {path + name!r}{nearest(name, names)}")
    if lacks := [name for name in _required(cls) if name not in data]:
        raise ValueError(f"{path}{lacks[0]} must be set; got none")
    values = {
        name: _parse(hints[name], data[name], f"{path}{name}") for name in names if name in data
    }
    return cls(**values)


def _required(cls: Any) -> list[str]:
    """The fields without a default."""
    none = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is none]


def _parse(annotation: Any, value: Any, path: str) -> Any:
    options = _options(annotation)
    if value is None and type(None) in options:
        return None
    classes = {o.__name__: o for o in options if isinstance(o, type) and _has_fields(o)}
    if isinstance(value, Mapping) and classes:
        kind = value.get(KIND, next(iter(classes)) if len(classes) == 1 else None)
        interfaces = [option for option in options if _is_interface(option)]
        if interfaces and user_modules.is_user_name(kind):
            own = user_modules.load(kind)
            user_modules.require(own, interfaces[0], kind)
            return from_dict(own, {**value, KIND: own.__name__}, f"{path}.")
        if not isinstance(kind, str) or kind not in classes:
            more = " or module:Class of your own" if interfaces else ""
            known = ", ".join(classes)
            raise ValueError(f"{path}.{KIND} must be one of {known}{more}; got {kind!r}")
        return from_dict(classes[kind], value, f"{path}.")
    item = _item(annotation)
    if isinstance(item, type) and _has_fields(item):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{path} must be a list of {item.__name__}; got {value!r:.80}")
        return tuple(_parse(item, part, f"{path}.{i}") for i, part in enumerate(value))
    if classes:
        names = [f"{path}.{f.name}" for c in classes.values() for f in dataclasses.fields(c)]
        raise ValueError(f"set {path} by its fields ({', '.join(names)}); got {value!r}")
    if type(value) is int and Path in options:  # a folder 2024 on a command line
        value = str(value)
    if isinstance(value, bool) and bool not in options:
        raise ValueError(f"{path} must not be a truth value; got {value!r}")
    try:
        parsed = TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{path}: {error.errors()[0]['msg'].lower()}; got {value!r}") from None
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise ValueError(f"{path} must be finite; got {value}")
    return parsed


def with_paths(value: Any, change: Callable[[Path], Path]) -> Any:
    """The same value, such as a dataclass, with ``change`` applied to each path at any depth."""
    if isinstance(value, Path):
        return change(value)
    if type(value) is tuple:
        return tuple(with_paths(item, change) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    before = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    after = {name: with_paths(item, change) for name, item in before.items()}
    changed = {name: item for name, item in after.items() if item != before[name]}
    return dataclasses.replace(value, **changed) if changed else value


def _has_fields(cls: type) -> bool:
    return dataclasses.is_dataclass(cls)


def _is_interface(option: Any) -> bool:
    return isinstance(option, type) and bool(getattr(option, "_is_protocol", False))


@lru_cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _options(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _item(annotation: Any) -> Any:
    """The type of the items of ``tuple[item, ...]``; None for another type."""
    first, *rest = typing.get_args(annotation) or (None,)
    return first if typing.get_origin(annotation) is tuple and rest == [...] else None


def flatten(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one level of dotted names; those in a list have their place there."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}{name}.")
        else:
            flat[path + name] = value
    return flat


def override(value: T, changes: Mapping[str, Any]) -> T:
    """A copy of a dataclass with fields replaced by dotted name, validated as a whole.

    Changing ``kind`` drops the fields of the former class. Raises ValueError for unknown names.
    """
    return overridden(type(value), to_dict(value), changes)


def overridden(cls: type[T], data: dict[str, Any], changes: Mapping[str, Any]) -> T:
    """``override`` of a dataclass that is given as nested dictionaries, which it modifies."""
    for name in sorted(changes, key=_outside_in):
        change, (*parents, leaf) = changes[name], name.split(".")
        node = data
        for parent in parents:
            node = _inner(node, parent, name)
        if not isinstance(node, dict):
            raise ValueError(f"unknown setting {name!r}: set the list whole, or a field of an item")
        if leaf == KIND and node.get(KIND) != change:
            node.clear()
        node[leaf] = change
    return from_dict(cls, data)


def _outside_in(name: str) -> tuple[int, bool]:
    """The order of changes: a kind drops what lies beside and below it, so it comes before that."""
    return name.count("."), not name.endswith(f".{KIND}")


def _inner(node: Any, parent: str, name: str) -> Any:
    """The dictionary or list in ``node`` at ``parent``, a part of the dotted ``name``.

    A missing dictionary is added to a dictionary, and one behind the last to a list of them.
    """
    if isinstance(node, list):
        if not parent.isdecimal() or int(parent) > len(node):
            raise ValueError(
                f"unknown setting {name!r}: a list's item must be 0 to {len(node)}; got {parent!r}"
            )
        node.extend([{}] * (int(parent) == len(node)))
        inner = node[int(parent)]
    else:
        if node.get(parent) is None:
            node[parent] = {}
        inner = node[parent]
    if not isinstance(inner, dict | list):
        raise ValueError(f"unknown setting {name!r}: {parent} has no fields")
    return inner
