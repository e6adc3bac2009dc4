"""Objectives along each parameter of a search, with the others at their best."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from vamf.cluster.search.analysis.gaussian_process import Curve, Kernel, Process, noise_shares
from vamf.cluster.search.trials import Trial

FEWEST = 10
"""Complete trials below which nothing is fitted."""
KERNELS = 600
"""Kernels that are weighted by their likelihood."""
CANDIDATES = 2048
"""Points among which the best is sought, beside the trials' own."""
POINTS = 41
"""Points of a slice along a number."""


class Slice(NamedTuple):
    """The objectives along one parameter."""

    parameter: str
    values: Sequence[Any]
    """(n,): numbers in ascending order, or the choices."""
    choices: bool
    logarithmic: bool
    tried: Sequence[Any]
    """(trials,): the values of the trials."""
    curves: tuple[Curve, ...]
    """One for each objective."""


class Slices(NamedTuple):
    """The slices through the best point."""

    best: Mapping[str, Any]
    """The parameters where the last objective, the distance, is lowest with some certainty."""
    distance: tuple[float, float, float]
    """The distance there: median, and the ends of the 95 % band."""
    slices: tuple[Slice, ...]
    """One for each parameter."""


def slices(
    study: optuna.Study, trials: Sequence[Trial], objectives: Sequence[str]
) -> Slices | None:
    """Fits each objective over all varied parameters; None for fewer than two, or ten trials.

    ``trials`` are complete ones of the study; parameters that some of them lack are left out. Each
    objective is a Gaussian process whose length scales differ between parameters, over their ranges
    as the study draws them: logarithms where it does, and choices all at the same distance. The
    noise is that of a seed. The best point is the one where the band of the last objective ends
    lowest, of the trials' own and of others that fill the ranges: where the least is known a median
    may be low by chance.
    """
    drawn = study.get_trials(deepcopy=False)
    rows = [drawn[trial.number] for trial in trials]
    if len(rows) < FEWEST:
        return None
    names = sorted(set.intersection(*({*row.params} for row in rows)))
    ranges = {name: rows[-1].distributions[name] for name in names}
    ranges = {name: found for name, found in ranges.items() if not found.single()}
    if len(ranges) < 2:
        return None
    x = coordinates(ranges, [row.params for row in rows])
    share = noise_shares([len(trial.seeds) for trial in trials])
    processes = [
        Process(x, [t.metrics[name].value for t in trials], share, _kernels(ranges))
        for name in objectives
    ]
    candidates = [{name: row.params[name] for name in ranges} for row in rows] + _spread(ranges)
    upper = processes[-1].upper(coordinates(ranges, candidates))
    best = candidates[int(upper.argmin())]
    curve, _ = processes[-1].curve(coordinates(ranges, [best]))
    return Slices(
        best=best,
        distance=(float(curve.mean[0]), float(curve.low[0]), float(curve.high[0])),
        slices=tuple(
            _slice(name, ranges, best, processes, [row.params[name] for row in rows])
            for name in ranges
        ),
    )


def coordinates(
    ranges: Mapping[str, BaseDistribution], points: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Points as (n, dimensions): numbers in their ranges from 0 to 1, choices as unit vectors.

    Of logarithms where the range is logarithmic. Two choices are at the distance 1.
    """
    columns = [_columns(found, [point[name] for point in points]) for name, found in ranges.items()]
    return np.concatenate(columns, axis=1)


def _columns(found: BaseDistribution, values: Sequence[Any]) -> np.ndarray:
    inner = [found.to_internal_repr(value) for value in values]
    if isinstance(found, CategoricalDistribution):
        return np.eye(len(found.choices))[np.asarray(inner, dtype=int)] / np.sqrt(2)
    low, high, x = found.low, found.high, np.asarray(inner, dtype=float)  # type: ignore[attr-defined]
    if found.log:  # type: ignore[attr-defined]
        low, high, x = np.log(low), np.log(high), np.log(x)
    return np.asarray((x - low) / (high - low))[:, None]


def _kernels(ranges: Mapping[str, BaseDistribution]) -> list[Kernel]:
    """Random kernels: variances and lengths are drawn evenly in their logarithms."""
    random = np.random.default_rng(0)
    widths = [_columns(found, [_values(found)[0]]).shape[1] for found in ranges.values()]
    signals = np.exp(random.uniform(np.log(0.3), np.log(3.0), KERNELS))
    lengths = np.exp(random.uniform(np.log(0.15), np.log(6.0), (KERNELS, len(widths))))
    noises = np.exp(random.uniform(np.log(0.001), np.log(1.0), KERNELS))
    repeated = lengths.repeat(widths, axis=1)
    return [Kernel(*chosen) for chosen in zip(signals, repeated, noises, strict=True)]


def _values(found: BaseDistribution, count: int = POINTS) -> list[Any]:
    """Values that fill a range evenly: ``count`` of a number, or all choices."""
    if isinstance(found, CategoricalDistribution):
        return list(found.choices)
    space = np.geomspace if found.log else np.linspace  # type: ignore[attr-defined]
    filled = space(found.low, found.high, count)  # type: ignore[attr-defined]
    if step := found.step:  # type: ignore[attr-defined]
        filled = found.low + step * np.round((filled - found.low) / step)  # type: ignore[attr-defined]
    inside = filled.clip(found.low, found.high)  # type: ignore[attr-defined]
    return list(dict.fromkeys(found.to_external_repr(value) for value in inside.tolist()))


def _spread(ranges: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Points that fill the ranges, as a Sobol sequence."""
    from scipy.stats.qmc import Sobol

    filled = [_values(found, CANDIDATES) for found in ranges.values()]
    cube = Sobol(len(ranges), seed=0).random(CANDIDATES)
    return [
        {
            name: values[int(place * len(values))]
            for name, values, place in zip(ranges, filled, row, strict=True)
        }
        for row in cube
    ]


def _slice(
    name: str,
    ranges: Mapping[str, BaseDistribution],
    best: Mapping[str, Any],
    processes: Sequence[Process],
    tried: Sequence[Any],
) -> Slice:
    found = ranges[name]
    choices, values = isinstance(found, CategoricalDistribution), _values(found)
    at = coordinates(ranges, [{**best, name: value} for value in values])
    curves = tuple(process.curve(at)[0] for process in processes)
    return Slice(
        parameter=name,
        values=values,
        choices=choices,
        logarithmic=not choices and found.log,  # type: ignore[attr-defined]
        tried=tried,
        curves=curves,
    )
