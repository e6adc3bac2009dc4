"""alpha of every step of an ensemble: the parts of training that one recorded program can serve."""

import torch
from torch import Tensor

from vamf.experiment import Experiment
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss


class AlphaOfSteps:
    """alpha of an ``AlphaFlowLoss`` in each step, counted from 0; 0 for any other loss.

    At alpha = 0 and at alpha = 1 the loss has operations of its own, so these are numbers and part
    of the program. Between them alpha is a tensor that the same program reads in every step.
    """

    def __init__(self, experiment: Experiment, steps: int, device: torch.device) -> None:
        loss, self._known = experiment.loss, [0.0] * steps
        if isinstance(loss, AlphaFlowLoss):
            self._known = [loss.alpha(experiment.progress(step)) for step in range(steps)]
        # In float64, as in a single run: 1 - alpha would lose digits.
        self._values = torch.tensor(self._known, dtype=torch.float64, device=device)

    def fixed(self, step: int) -> float | None:
        """alpha of a step if it is 0 or 1; None between."""
        alpha = self._known[step]
        return alpha if alpha in (0, 1) else None

    def __call__(self, fixed: float | None, count: Tensor) -> float | Tensor:
        """``fixed``, or the tensor () of the step whose number is in ``count``, (1,)."""
        return self._values.index_select(0, count).squeeze(0) if fixed is None else fixed
