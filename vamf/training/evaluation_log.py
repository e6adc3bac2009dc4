"""The evaluations of a run in a file of its folder, for curves over time."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vamf.files import write_whole
from vamf.metrics.distances import Measurement
from vamf.run_layout import EVALUATIONS


class Evaluated(NamedTuple):
    """What a run measured at a step."""

    step: int
    """Training steps taken."""
    seconds: float
    """Wall-clock seconds of these steps, without evaluations and other pauses."""
    gib: float | None
    """Peak memory of the first worker's GPU so far, in GiB; None on the CPU."""
    metrics: Mapping[str, Measurement]
    """The metrics, ``eval/...``."""


def evaluations(run: Path) -> list[Evaluated]:
    """The evaluations of a run by step; none in a folder of an older version, or if damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return [_parsed(line) for line in (run / EVALUATIONS).read_text().splitlines()]
    return []


def _parsed(line: str) -> Evaluated:
    data = json.loads(line)
    metrics = {name: Measurement(*pair) for name, pair in data.pop("metrics").items()}
    return Evaluated(**data, metrics=metrics)


def add(
    run: Path,
    step: int,
    seconds_per_step: float,
    metrics: Mapping[str, Measurement],
    gib: float | None = None,
) -> None:
    """Adds an evaluation, in the place of those at the same and later steps.

    ``seconds_per_step`` is the mean since the last one. Where a run was resumed in between, its
    steps before that count with the same mean.
    """
    earlier = [one for one in evaluations(run) if one.step < step]
    before = earlier[-1] if earlier else Evaluated(0, 0.0, None, {})
    seconds = before.seconds + (step - before.step) * seconds_per_step
    rows = [*earlier, Evaluated(step, seconds, gib, metrics)]
    write_whole(run / EVALUATIONS, "".join(f"{json.dumps(one._asdict())}\n" for one in rows))
