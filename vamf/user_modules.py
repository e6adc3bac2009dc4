"""Objects of a user's own modules, by a name: ``package.module:NAME`` or ``path/file.py:NAME``.

A module is found as Python finds it, from the working folder too. A relative path starts in the
working folder or in one of ``sys.path``, as processes on a cluster work in other folders.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from vamf.errors import first_line

NAME = "__vamf_name__"
"""The attribute of a module from a path with the path as the user wrote it."""


def is_user_name(name: object) -> bool:
    """Whether a name is one of a user's own object, rather than of what vamf brings."""
    return isinstance(name, str) and (":" in name or name.endswith(".py"))


def load(name: str) -> Any:
    """The object of that name.

    Raises:
        ValueError: there is no such module or object, or the module cannot be imported.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        raise ValueError(f"a name must be module:object or path/file.py:object; got {name!r}")
    found: Any = load_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = ", ".join(_own_names(found)) or "nothing"
            raise ValueError(f"{module_name} must have {part!r}; it has {known}")
        found = getattr(found, part)
    return found


def _own_names(found: Any) -> Iterator[str]:
    """The public names of a module, without those that it imports."""
    for name, value in vars(found).items():
        elsewhere = getattr(value, "__module__", "") != getattr(found, "__name__", "")
        imported = elsewhere and (callable(value) or type(value).__module__ == "typing")
        if not (name.startswith("_") or imported or isinstance(value, ModuleType)):
            yield name


def load_module(name: str) -> ModuleType:
    """The module of a dotted name or of a path that ends in ``.py``; imported once.

    Raises:
        ValueError: there is no such module, or it cannot be imported.
    """
    if name.endswith(".py"):
        return _of_file(name)
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"a module {name!r} must be in {here} or installed") from None
        raise _unusable(name, error) from error
    except Exception as error:  # whatever a user's module raises
        raise _unusable(name, error) from error


def _of_file(name: str) -> ModuleType:
    path = file_of(name)
    unique = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    setattr(module, NAME, name)
    sys.modules[unique] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's module raises
        del sys.modules[unique]
        raise _unusable(name, error) from error
    return module


def file_of(name: str) -> Path:
    """The file of a path that ends in ``.py``; ValueError if there is none."""
    path = Path(name).expanduser()
    found = (Path(folder, path).resolve() for folder in ("", *sys.path))
    for file in found:
        if file.is_file():
            return file
    raise ValueError(f"a file {name} must be in {Path.cwd()} or in a folder of PYTHONPATH")


def _unusable(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} cannot be imported: {type(error).__name__}: {first_line(error)}")


def name_of(cls: type) -> str:
    """The name by which another process finds a class.

    Raises:
        ValueError: it is a class of a notebook, or inside a function.
    """
    module: str | None = cls.__module__
    if module == "__main__":  # another process has another main program
        main = sys.modules["__main__"]
        spec, file = main.__spec__, getattr(main, "__file__", None)
        module = spec.name if spec else file
    elif module in sys.modules:
        module = getattr(sys.modules[module], NAME, module)
    if module is None or "<locals>" in cls.__qualname__:
        raise ValueError(
            f"{cls.__qualname__} must be in a module, at its top level, where other processes find "
            "it: write it to a file"
        )
    return f"{module}:{cls.__qualname__}"


def require(cls: Any, interface: type, name: str) -> None:
    """Raises ValueError unless a class is a frozen dataclass that has all of an interface."""
    if not (dataclasses.is_dataclass(cls) and isinstance(cls, type)):
        raise ValueError(f"{name} must be a frozen dataclass; got {cls!r:.80}")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name} must be a frozen dataclass: @dataclass(frozen=True, kw_only=True)"
        )
    fields = {field.name for field in dataclasses.fields(cls)}
    lacks = [m for m in members(interface) if m not in fields and not hasattr(cls, m)]
    if lacks:
        where = f"{interface.__module__}.{interface.__name__}"
        raise ValueError(f"{name} lacks {', '.join(lacks)} of the interface {where}")


def members(interface: type) -> Iterator[str]:
    """The names of what a protocol asks for, besides what every object has."""
    for base in reversed(interface.__mro__):
        if getattr(base, "_is_protocol", False):
            yield from (n for n in vars(base) if n == "__call__" or not n.startswith("_"))


def short(name: str) -> str:
    """The last part of a name, as a folder can have it: ``SHAPES`` of ``shapes.py:SHAPES``."""
    last = name.rpartition(":")[2].removesuffix(".py")
    return re.split(r"[./]", last)[-1]
