"""Parses a command line into the dataclass that declares its options."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from vamf import commands, serialization
from vamf.files import expanded

T = TypeVar("T")

OTHER_NAMES = {
    re.compile(r"^--ddpm\."): "--loss.",
    re.compile(r"^--accumulate\b"): "--compute.accumulate",
}
"""Options that were renamed, as a DDPM is a kind of loss, and short names."""

GIVES_KIND = re.compile(r"(?:--set=|--)?([\w.-]+)\.kind(?:=|$)")
"""An option or a setting that chooses the kind of a field, whose name is the group."""


def read(
    options: type[T], argv: Sequence[str], prog: str | None = None, default: T | None = None
) -> T:
    """The options of a command line; exits with an error if they are invalid.

    A path may begin with ``~``, and an option that takes a list may be given several times. If the
    options have a field ``set``, dotted options that they lack are added to it as settings. Raises
    ValueError for an unknown option, or if ``~`` is not a user's home.
    """
    for other, name in OTHER_NAMES.items():
        argv = [other.sub(name, word) for word in argv]
    known = set(dotted(options if default is None else default))
    if "set" in known:
        argv = with_settings(argv, known)
    require_known(argv, known)
    words = gathered(argv, set(lists(options)))
    base = tyro.MISSING_NONPROP if default is None else default
    program = commands.shown(prog) if prog else None
    found: T = tyro.cli(options, args=words, prog=program, default=base)
    return serialization.with_paths(found, expanded)


def with_settings(argv: Sequence[str], known: set[str]) -> list[str]:
    """The command line with `--a.b value`, if it is not ``known``, as `--set a.b=value`.

    So are all options below a field that is given a kind, `--a.kind` or `--set a.kind=...`: what
    they set is that kind's, and would go with the former one. Several values become a list, and
    none becomes true, or false after `--a.no-b`.
    """
    kinds = [found[1].replace("-", "_") for word in argv if (found := GIVES_KIND.match(word))]
    below = tuple(f"{name}." for name in kinds)
    words: list[str] = []
    settings: list[tuple[str, list[str]]] = []
    values = words
    for word in argv:
        option, given, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        is_known = known & {name, name.replace(".no_", ".")} and not name.startswith(below)
        if word.startswith("--") and "." in name and not is_known:
            values = [value] if given else []
            settings.append((name, values))
            values = words if given else values
        else:
            values = words if word.startswith("--") else values
            values.append(word)
    return words + [word for setting in settings for word in ("--set", _setting(*setting))]


def require_known(argv: Sequence[str], known: set[str]) -> None:
    """Raises ValueError for an option that is not ``known``, with the nearest one."""
    for word in argv:
        option = word.partition("=")[0]
        name = option.removeprefix("--").replace("-", "_")
        names = {name, name.replace(".no_", "."), name.removeprefix("no_")}
        tyros = not name or name == "help" or name.startswith("tyro_")
        if option.startswith("--") and not tyros and not known & names:
            raise ValueError(f"unknown option {option}{_hint(name, sorted(known))}")


def _hint(name: str, known: Sequence[str]) -> str:
    """The known option with the same last part, or else the most similar one."""
    same = [other for other in known if other.rpartition(".")[2] == name]
    close = same or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        return "; --help lists all"
    return f"; did you mean --{close[0].replace('_', '-')}?"


def _setting(name: str, values: Sequence[str]) -> str:
    if ".no_" in name and not values:
        return f"{name.replace('.no_', '.')}=false"
    value = values[0] if len(values) == 1 else json.dumps([literal(v) for v in values] or True)
    return f"{name}={value}"


def literal(text: str) -> object:
    """A value as JSON, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def dotted(options: Any, path: str = "") -> Iterator[str]:
    """The dotted names of all options that a dataclass, or its class, declares."""
    declared = options if isinstance(options, type) else type(options)
    hints = typing.get_type_hints(declared)
    annotated = typing.get_type_hints(declared, include_extras=True)
    for field in dataclasses.fields(options):
        given = None if isinstance(options, type) else getattr(options, field.name)
        hint = hints[field.name]
        value = hint if given is None else given
        marks = getattr(annotated[field.name], "__metadata__", ())
        flat = any(getattr(mark, "name", None) == "" for mark in marks)  # of tyro.conf.arg
        below = path if flat else f"{path}{field.name}."
        kinds = (hint, *typing.get_args(hint))  # tyro has no options for a user's own class
        if dataclasses.is_dataclass(value) and (given is None or type(given) in kinds):
            yield from dotted(value, below)
        else:
            yield path + field.name


def gathered(argv: Sequence[str], names: set[str]) -> list[str]:
    """The command line with all values of an option that takes a list after its first name.

    ``names`` are the last parts of such options' names. argparse alone would keep only the values
    of the last one.
    """
    others: list[str] = []
    listed: dict[str, list[str]] = {}
    current = others
    for word in argv:
        option, given, value = word.partition("=")
        if word.startswith("--") and last_part(option) in names:
            found = listed.setdefault(option.replace("_", "-"), [option])
            found += [value] if given else []
            current = others if given else found  # after --set=a=1 comes no other value of it
        else:
            current = others if word.startswith("--") else current
            current.append(word)
    return others + [word for words in listed.values() for word in words]


def last_part(option: str) -> str:
    """The name of an option's field: ``also`` of ``--evaluation.distance.also``."""
    return option.removeprefix("--").rpartition(".")[2].replace("-", "_")


def lists(options: type) -> Iterator[str]:
    """The names of the fields, however deep, that take any number of values."""
    for name, hint in typing.get_type_hints(options).items():
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        for kind in typing.get_args(hint) if union else (hint,):
            if typing.get_origin(kind) is tuple and Ellipsis in typing.get_args(kind):
                yield name
            elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield from lists(kind)
