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


def read(
    options: type[T], argv: Sequence[str], prog: str | None = None, default: T | None = None
) -> T:
    """The options of a command line; exits with an error if they are invalid.

    A path may begin with ``~``, and an option that takes a list may be given several times. If the
    options have a field ``set``, dotted options that they lack are added to it as settings; if
    there are settings, so are the options of their experiment. Raises ValueError for an unknown
    option, or if ``~`` is not a user's home.
    """
    for other, name in OTHER_NAMES.items():
        argv = [other.sub(name, word) for word in argv]
    known, several = set(dotted(options if default is None else default)), set(lists(options))
    if "set" in known:
        experiment = getattr(default, "experiment", None)
        own = set() if experiment is None else set(dotted(experiment))
        argv = with_settings(gathered(argv, several), known, own, several)
    require_known(argv, known)
    words = gathered(argv, several)
    base = tyro.MISSING_NONPROP if default is None else default
    program = commands.shown(prog) if prog else None
    found: T = tyro.cli(options, args=words, prog=program, default=base)
    return serialization.with_paths(found, expanded)


def with_settings(
    argv: Sequence[str], known: set[str], own: set[str], several: set[str]
) -> list[str]:
    """The command line with `--a.b value`, if it is not ``known``, as `--set=a.b=value`.

    If there are such settings, or `--set`, all options of the experiment, its ``own``, become
    settings, too. So it is changed and checked once, as a whole: a kind would drop the fields that
    were set before it, and an option may need a setting. Several values become a list, as does one
    of an option named in ``several``; none becomes true, or false after `--a.no-b`.
    """
    found = [known_name(word, known) for word in argv]
    named = any(word.partition("=")[0] == "--set" for word in argv)
    moved = own if named or any("." in n and n not in known for n in found) else set()
    words: list[str] = []
    settings: list[tuple[str, str, list[str]]] = []
    values = words
    for word, name in zip(argv, found, strict=True):
        option, given, value = word.partition("=")
        if name in moved or (name not in known and "." in name):
            values = [value] if given else []
            settings.append((option, name, values))
            values = words if given else values
        else:
            values = words if name else values
            values.append(word)
    return [f"--set={_setting(*setting, several)}" for setting in settings] + words


def known_name(word: str, known: set[str]) -> str:
    """The name in a word that begins an option, as it is known: `--a.no-b` sets `a.b`.

    Empty for another word.
    """
    if not word.startswith("--"):
        return ""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    names = (name, name.replace(".no_", "."), name.removeprefix("no_"))
    return next((n for n in names if n in known), name)


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


def _setting(option: str, name: str, values: Sequence[str], several: set[str]) -> str:
    if re.search(r"(--|\.)no[-_]", option) and not values:
        return f"{name.replace('.no_', '.')}=false"
    if last_part(option) in several:
        return f"{name}={json.dumps([literal(v) for v in values])}"
    if list(values) == ["None"]:
        return f"{name}=null"
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
