"""The command lines of this project's programs, in the repository and from an installed wheel."""

import sys
from pathlib import Path

PACKAGE = Path(__file__).parent

INSTALLED = (PACKAGE / "jobs").is_dir()
"""Whether the programs are in this package, as a wheel has them, rather than beside it."""


def _by_name(program: Path) -> bool:
    """Whether this process was started as ``vamf NAME`` or ``python -m vamf NAME``."""
    return program.stem == "vamf" or program.parts[-2:] == (PACKAGE.name, "__main__.py")


SHORT = INSTALLED or _by_name(Path(sys.argv[0]))
"""Whether commands are shown as ``vamf NAME`` rather than ``python -m jobs.NAME``."""


def shown(name: str, *words: object) -> str:
    """The command line of a program for users."""
    program = f"vamf {name}" if SHORT else f"python -m {module(name)}"
    return " ".join([program, *map(str, words)])


def argv(name: str, *words: str) -> list[str]:
    """The command line for a subprocess, with this process's Python."""
    return [sys.executable, "-m", module(name), *words]


def module(name: str, *, installed: bool = INSTALLED) -> str:
    """The module name of a program."""
    return f"vamf.jobs.{name}" if installed else f"jobs.{name}"
