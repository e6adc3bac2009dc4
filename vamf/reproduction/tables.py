"""The tables of a reproduction in Markdown, with the paper's values and a verdict for each beta."""

import math
from collections.abc import Mapping

from torch import Tensor

from vamf import markdown
from vamf.metrics import significance
from vamf.metrics.distances import Measurement, mean_with_error
from vamf.reproduction import paper
from vamf.reproduction.results import Result


def over_seeds(values: Tensor) -> Measurement:
    """The mean over seeds, (seeds,), and its standard error; NaN if a value is NaN."""
    return mean_with_error(values)


def verdicts(result: Result, name: str) -> list[str]:
    """How each beta of ``sw1`` or ``sw2`` compares with beta = 0; "-" for beta = 0 itself."""
    base, grid = result.betas.index(0.0), result.grid(name).T.numpy()
    others = [column for column in range(len(result.betas)) if column != base]
    found = significance.verdicts(grid[[base, *others]])
    by_column = dict(zip(others, found, strict=True))
    return [by_column.get(column, "-") for column in range(len(result.betas))]


def ratio(result: Result, column: int) -> Measurement:
    """Gradient variance at beta = 0 over that at another beta: mean over seeds and its error."""
    trace = result.grid("trace")
    return over_seeds(trace[:, result.betas.index(0.0)] / trace[:, column])


HEADER = [
    *("beta", "SW1", "paper", "SW1 against β=0", "SW2", "paper", "SW2 against β=0"),
    *("gradient variance", "β=0 / β"),
]


def table(result: Result) -> str:
    """The table of one set, a row for each beta."""
    against = {name: verdicts(result, name) for name in ("sw1", "sw2")}
    rows = [
        _row(result, column, {name: found[column] for name, found in against.items()})
        for column in range(len(result.betas))
    ]
    return markdown.table(HEADER, rows)


def _row(result: Result, column: int, against: Mapping[str, str]) -> list[str]:
    beta, cells = result.betas[column], [f"{result.betas[column]:g}"]
    published = paper.sliced_wasserstein(result.set, beta)
    for (name, verdict), theirs in zip(against.items(), published, strict=True):
        ours = over_seeds(result.grid(name)[:, column])
        cells += [text(ours), str(theirs or "-"), verdict]
    trace = over_seeds(result.grid("trace")[:, column])
    return [*cells, text(trace), text(ratio(result, column)) if beta else "1"]


def text(measured: Measurement) -> str:
    """A mean with its error, or "lost"."""
    return "lost" if math.isnan(measured.value) else str(measured)


def floor(result: Result) -> str:
    """The line about the distance of real points, and the error of a measurement."""
    (one, one_error), (two, two_error) = result.floor
    errors = ", ".join(f"{error:.1g}" for error in result.repetition_error)
    return (
        f"Floor (real against real points): SW1 {Measurement(one, one_error)}, "
        f"SW2 {Measurement(two, two_error)}; error of one evaluation (SW1, SW2): {errors}."
    )


def training(result: Result) -> str:
    """The steps of training, its largest gap, and the machine."""
    return (
        f"{result.experiment['steps']} steps, trained gap at most "
        f"{result.experiment['times']['max_gap']:g}; {result.device}, torch {result.torch}"
    )


def about(result: Result) -> str:
    """The lines above a table: floors, errors, cost."""
    lines = [
        floor(result),
        f"{training(result)}, {result.seconds:.0f} s for "
        f"{len(result.seeds) * len(result.betas)} members"
        + (
            f", trained together with {result.together - 1} other sets."
            if result.together > 1
            else "."
        ),
    ]
    return "\n".join([*lines, *result.lost_lines()])


READING = """Seeds {seeds}. ± is the standard error over {n} seeds. Verdicts are t-tests over
{n} seeds against beta = 0, whose variance is that of all betas of a set, or the beta's own where
that is larger{caution}. {different} of {tests} tests
differ; of those that do {share:.0%} are expected to by chance (Benjamini-Hochberg over the betas of
a set and distance). One-step samples of the moving average; points, noise and directions are common
to all members. Gradient variance: trace of the covariance of a batch's mean gradient over 8
batches, in the second half of training; the paper's ratio of beta = 0 to 1 is {paper}.
Mixtures whose centres are redrawn for every batch are the paper's; their distances equal the
floor for every model. The paper's values come from its own protocol."""


def document(results: Mapping[str, Result]) -> str:
    """The tables of all finished sets, after an explanation."""
    some = next(iter(results.values()))
    found = [v for r in results.values() for name in ("sw1", "sw2") for v in verdicts(r, name)]
    n, tests = len(some.seeds), sum(2 * (len(r.betas) - 1) for r in results.values())
    reading = READING.format(
        seeds=", ".join(map(str, some.seeds)),
        n=n,
        caution=": with so few seeds only large effects show" if n < 5 else "",
        tests=tests,
        different=sum(v in (significance.BETTER, significance.WORSE) for v in found),
        share=significance.RATE,
        paper=paper.GRADIENT_RATIO,
    )
    commands = "\n".join(dict.fromkeys(f"`{r.command}`" for r in results.values()))
    parts = [f"## {name}\n\n{about(r)}\n\n{table(r)}" for name, r in results.items()]
    head = ["# Reproduction of arXiv 2605.09235 on points", commands, reading]
    return "\n\n".join([*head, *parts]) + "\n"
