"""Replays the forward and backward pass of a step as one CUDA graph, launched at once."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vamf.flow.objectives.terms import LossTerms
from vamf.training.step.objective import Inputs, Objective
from vamf.training.step.replayed import Replayed

WARM_UP = 3
"""Steps that run without a graph before the capture: they compile kernels and fill caches."""


class _Step(NamedTuple):
    terms: LossTerms
    gradients: Sequence[Tensor | None]


def _step(
    objective: Objective, parameters: Sequence[nn.Parameter], share: float, inputs: Inputs
) -> _Step:
    for parameter in parameters:
        parameter.grad = None
    terms = objective.terms(inputs)
    terms.loss.backward(torch.full_like(terms.loss, share))
    return _Step(terms._replace(loss=terms.loss.detach()), [p.grad for p in parameters])


class Captured:
    """Computes an objective's loss and gradients; from the fourth step on, replays a CUDA graph.

    Steps whose inputs differ in more than the values of tensors get separate graphs. The returned
    values and the gradients are valid until the next call.
    """

    def __init__(self, objective: Objective, share: float = 1.0) -> None:
        """``share`` is the factor of the gradients: a micro-batch's share of the batch."""
        self._parameters = [p for p in objective.net.parameters() if p.requires_grad]
        step = partial(_step, objective, self._parameters, share)
        self._replayed = Replayed(step, objective.workers.device, WARM_UP)

    def __call__(self, inputs: Inputs) -> LossTerms:
        """Computes a step's loss and gradients; former gradients of the parameters are lost."""
        terms, gradients = self._replayed(inputs)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return terms


def captured(objective: Objective, share: float = 1.0) -> Captured | None:
    """A ``Captured`` objective if its steps can be captured (compiled, on a GPU), else None."""
    return Captured(objective, share) if objective.execution.capture else None
