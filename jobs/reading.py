"""Reading a command line into the dataclass that declares its options."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from typing import TypeVar

import tyro

from vamf import values
from vamf.files import expanded

T = TypeVar("T")


def read(
    options: type[T], argv: Sequence[str], prog: str | None = None, default: T | None = None
) -> T:
    """The options that a command line gives; exits with what is wrong with them.

    A path may begin with ``~``, and an option that takes a list may be given several times. Raises
    ValueError if ``~`` is nobody's home.
    """
    words = gathered(argv, set(lists(options)))
    base = tyro.MISSING_NONPROP if default is None else default
    found: T = tyro.cli(options, args=words, prog=prog, default=base)
    return values.with_paths(found, expanded)


def gathered(argv: Sequence[str], names: set[str]) -> list[str]:
    """The same command line with all values of an option that takes a list after its first name.

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
    """Of an option, the name of its field: of ``--evaluation.distance.also``, ``also``."""
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
