"""Search spaces by the name on a command line: vamf's, or a user's own."""

import importlib
import pkgutil
from importlib.util import find_spec
from types import ModuleType

from vamf import serialization, user_modules

tune_spaces = importlib.import_module(f"{__package__.removesuffix('jobs')}tune_spaces")
"""The package beside this one, which a wheel has in ``vamf``."""

SPACES = tuple(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))
"""The names of vamf's own search spaces."""

SPACE = ("PRESET", "OBJECTIVES", "POINTS", "sampler", "space")
"""What a search space must have: see vamf.cluster.search.space.Space."""


def space(name: str) -> ModuleType:
    """The search space of that name: one of vamf's, ``path/file.py``, or a module's dotted name.

    Raises ValueError if there is none, or if it lacks something.
    """
    if name in SPACES:
        return importlib.import_module(f"{tune_spaces.__name__}.{name}")
    if ":" in name:
        raise ValueError(f"a search space must be a module or a file; got {name!r}")
    if not name.endswith(".py") and not _is_module(name):
        raise ValueError(f"unknown search space {name!r}{serialization.nearest(name, SPACES)}")
    found = user_modules.load_module(name)
    if lacks := [part for part in SPACE if not hasattr(found, part)]:
        raise ValueError(f"a search space must have {', '.join(SPACE)}; {name} lacks {lacks[0]}")
    return found


def _is_module(name: str) -> bool:
    try:
        return "." in name or find_spec(name) is not None
    except ValueError:
        return False
