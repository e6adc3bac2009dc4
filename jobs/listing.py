"""Lists programs, presets and search spaces; imports nothing that takes long."""

import argparse
import sys
from collections.abc import Mapping

from vamf import commands, output

from .summaries import PRESETS, PROGRAMS, SPACES

HELP = ("-h", "--help")

OWN = {
    "train": ("module:NAME", "an Experiment of your own; or path/file.py:NAME"),
    "tune": ("path/space.py", "a search space of your own; or the name of a module"),
}
"""What stands for a name of vamf's own."""


def answer(program: str) -> None:
    """Ends this process with the list if its command line asks for it alone."""
    if asked(program, sys.argv[1:]):
        show(names(program))
        raise SystemExit(0)


def show(text: str) -> None:
    """Prints a list, whole or as far as its reader reads."""
    output.ignore_write_errors()
    print(text)


def asked(program: str, argv: list[str]) -> bool:
    """Whether a command line asks which names there are; ``tune`` has one by default."""
    return argv[0] in HELP if argv else program == "train"


def programs() -> str:
    """What there is, a line for each program."""
    return (
        "usage: vamf NAME [options]; vamf NAME --help says more\n\n"
        f"{_table(PROGRAMS)}\n\n"
        'eval "$(vamf --completion bash)" completes names in this shell; also zsh, fish'
    )


def completion(shell: str = "bash") -> str:
    """A script for a shell that completes the names of programs, presets, spaces and files."""
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        sys.exit(f"error: a shell must be one of {known}; got {shell!r}")
    parser = argparse.ArgumentParser("vamf")
    programs = parser.add_subparsers()
    for name, line in PROGRAMS.items():
        program = programs.add_parser(name, help=line)
        if choices := {"train": PRESETS, "bench": PRESETS, "clock": PRESETS, "tune": SPACES}.get(
            name
        ):
            program.add_argument("name", choices=[*choices])
        else:
            program.add_argument("path").complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script


def names(program: str) -> str:
    """The presets for ``train``, the search spaces for ``tune``, and how they are given."""
    usage = {"train": "PRESET [options]", "tune": "[SPACE [PRESET]] [options]"}[program]
    known = {"train": PRESETS, "tune": SPACES}[program]
    name = {"train": "PRESET", "tune": "SPACE"}[program]
    command = commands.shown(program)
    return (
        f"usage: {command} {usage}\n"
        f"       {command} --resume FOLDER      continues what the folder holds\n"
        f"       {command} {name} --help{' ' * (14 - len(name))}lists all options\n\n"
        f"{_table(dict([*known.items(), OWN[program]]))}"
    )


def _table(known: Mapping[str, str]) -> str:
    width = max(map(len, known))
    return "\n".join(f"  {name:{width}}  {line}" for name, line in known.items())
