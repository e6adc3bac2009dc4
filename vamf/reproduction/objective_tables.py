"""The tables of a comparison of objectives in Markdown, with verdicts against MeanFlow."""

from collections.abc import Mapping, Sequence

import numpy as np

from vamf import markdown
from vamf.metrics import significance
from vamf.reproduction.objectives import BASELINE
from vamf.reproduction.results import Result
from vamf.reproduction.tables import floor, over_seeds, text, training

DISTANCES = ("sw1", "sw2")

HEADER = [
    *("objective", "SW1", f"SW1 against {BASELINE}", "SW2", f"SW2 against {BASELINE}"),
    *("gradient variance", "seconds"),
]


def verdicts(results: Sequence[Result], name: str) -> dict[str, str]:
    """How the objectives of a set compare with MeanFlow in ``sw1`` or ``sw2``; "-" for itself.

    All are "-" while MeanFlow is not finished.
    """
    by_objective = {str(result.objective): result for result in results}
    found = dict.fromkeys(by_objective, "-")
    others = [objective for objective in by_objective if objective != BASELINE]
    if BASELINE in by_objective and others:
        rows = [by_objective[which].grid(name)[:, 0].numpy() for which in (BASELINE, *others)]
        found |= dict(zip(others, significance.verdicts(np.stack(rows)), strict=True))
    return found


def table(results: Sequence[Result]) -> str:
    """The table of one set, a row for each finished objective."""
    against = {name: verdicts(results, name) for name in DISTANCES}
    return markdown.table(HEADER, [_row(result, against) for result in results])


def _row(result: Result, against: Mapping[str, Mapping[str, str]]) -> list[str]:
    cells = [objective := str(result.objective)]
    for name in DISTANCES:
        cells += [text(over_seeds(result.grid(name)[:, 0])), against[name][objective]]
    return [*cells, text(over_seeds(result.grid("trace")[:, 0])), f"{result.seconds:.0f}"]


READING = """Seeds {seeds}; those of all objectives begin with the same weights and have the same
data, noise and times. ± is the standard error over {n} seeds. Verdicts are t-tests over {n} seeds
against {baseline}, paired by seed, whose variance is that of all objectives of a set, or the
objective's own where that is larger{caution}. {different} of {tests}
tests differ; of those that do {share:.0%} are expected to by chance (Benjamini-Hochberg over the
objectives of a set and distance). Samples of the moving average, in one step; those of flow
matching by 25 steps of Heun's rule, 50 evaluations of the network. Points, noise and directions are
common to all. Gradient variance: trace of the covariance of a batch's mean gradient over 8 batches,
in the second half of training, of each objective's own loss; that of terminal velocity is the sum
of two squared errors. Seconds are those of all programs that were trained together."""


def document(results: Sequence[Result]) -> str:
    """The tables of all finished sets and objectives, after an explanation; at least one."""
    names = dict.fromkeys(result.set for result in results)
    sets = {name: [result for result in results if result.set == name] for name in names}
    found = [
        verdict
        for own in sets.values()
        for name in DISTANCES
        for verdict in verdicts(own, name).values()
        if verdict != "-"
    ]
    n = len(results[0].seeds)
    reading = READING.format(
        seeds=", ".join(map(str, results[0].seeds)),
        n=n,
        baseline=BASELINE,
        caution=": with so few seeds only large effects show" if n < 5 else "",
        tests=len(found),
        different=sum(v in (significance.BETTER, significance.WORSE) for v in found),
        share=significance.RATE,
    )
    commands = "\n".join(dict.fromkeys(f"`{r.command}`" for r in results))
    parts = [f"## {name}\n\n{_about(own)}\n\n{table(own)}" for name, own in sets.items()]
    return "\n\n".join(["# Objectives on points", commands, reading, *parts]) + "\n"


def _about(results: Sequence[Result]) -> str:
    """The lines above a table: floors, cost, and which members were lost."""
    lost = [line for result in results for line in result.lost_lines()]
    members = f"{len(results[0].seeds)} members for each objective."
    return "\n".join([floor(results[0]), f"{training(results[0])}; {members}", *lost])
