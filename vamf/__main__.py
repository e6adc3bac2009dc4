"""The command ``vamf NAME ...``, the same as ``python -m jobs.NAME ...``."""

import difflib
import runpy
import sys
from importlib import import_module

from vamf import commands


def main() -> None:
    """Runs the program that the command line names, as Python runs a module.

    Without a name it lists the programs. It imports none but the one it runs.
    """
    listing = import_module(commands.module("listing"))
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        listing.show(listing.programs())
        return
    if name == "--completion":
        listing.show(listing.completion(*sys.argv[2:3]))
        return
    if name not in listing.PROGRAMS:
        close = difflib.get_close_matches(name, listing.PROGRAMS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "vamf --help lists them"
        print(f"error: unknown program {name!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    del sys.argv[1]
    runpy.run_module(commands.module(name), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
