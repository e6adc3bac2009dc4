"""What moves in an objective over training, such as alpha, as its steps take it."""

import torch
from torch import Tensor

from vamf.experiment import Experiment
from vamf.flow.objectives.terms import Moving

PARTS = 200
"""Parts of training at whose borders ``programs`` looks at what moves."""

Moved = float | Tensor | None


def moved(experiment: Experiment, step: int, compiled: bool, device: torch.device) -> Moved:
    """What the loss takes in a step, counted within its stage; None if nothing moves.

    Training's progress if steps are not ``compiled``; else the number that moves, which is a tensor
    that a captured step reads anew, except where the loss has operations of its own.
    """
    loss, progress = experiment.loss, experiment.progress(step)
    if not loss.moves:
        return None
    if not (compiled and isinstance(loss, Moving)):
        return progress
    if loss.stands_apart(number := loss.moves_to(progress)):
        return number
    # In float64, as in other steps: 1 - alpha would lose digits.
    return torch.full((), number, dtype=torch.float64, device=device)


def programs(experiment: Experiment, compiled: bool, device: torch.device) -> list[Moved]:
    """What the loss takes in the first step of each program that a compiled stage has, in order.

    Of one step only, its first, if steps are not ``compiled``.
    """
    steps = experiment.steps if compiled else 1
    found: dict[float | None, Moved] = {}
    for step in (*range(0, steps, max(steps // PARTS, 1)), steps - 1):
        now = moved(experiment, step, compiled, device)
        found.setdefault(None if isinstance(now, Tensor) else now, now)
    return [*found.values()]
