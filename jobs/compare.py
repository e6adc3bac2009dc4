"""Compare runs and searches: ``python -m jobs.compare runs/A runs/B --out comparison``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vamf.cluster.search.analysis.comparison import compare
from vamf.cluster.search.analysis.comparison_files import write

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare runs and searches that have ended: a table, plots, and their samples side by side.

    Runs that differ in their seed only are one row, with the mean and its standard error. A row's
    label is the settings that differ between the rows, or the trial's name in a search alone. The
    first folder's configuration (of a search: its first complete trial, or the best with --best) is
    the baseline. A row that has two or more seeds in common with it is judged by its distance:
    better, worse or indistinguishable, by a t-test that pairs equal seeds. With one seed each there
    is no verdict: train with another --seed, or search with --seeds.

    Refused are runs that have not ended, and runs whose data or evaluation (distance, samples,
    reference, sampler, sampling steps, seed) differ.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """A search, or two or more runs and searches, by their folders or addresses in an object store;
    each complete trial of a search counts."""
    best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of a search compare only the trial of the Pareto front with the smallest distance."""
    out: Path = Path("comparison")
    """Folder to write: table.md, metrics.png (loss variance and distance with errors), curves.png
    (of the first row and the nine with the smallest distances: the distance over seconds of
    training, and over samples) and samples.png (the last picture that each row's first run has
    kept)."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "compare")
    found = cli.guarded(lambda: compare(options.folders, best=options.best))
    files = cli.guarded(lambda: write(found, options.out))
    print(found)
    for name, path in files.items():
        print(f"{name:10} {path}")


if __name__ == "__main__":
    cli.start(main)
