"""Micro-batches: a step's samples in parts, one after the other, whose gradients are added."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vamf.compat.torch import add_all_
from vamf.contiguous import memory_of, side_by_side


class GradientSum:
    """The sum of the gradients of micro-batches, in adjacent memory that all steps use."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums = side_by_side([p.detach() for p in parameters], torch.float32)
        memory = memory_of(self._sums)
        assert memory is not None  # they are side by side
        self._memory = memory
        self._used = [False] * len(parameters)

    def take(self) -> None:
        """Adds the parameters' gradients, and removes them from the parameters."""
        if not any(self._used):
            self._memory.zero_()
        given = [(k, g) for k, p in enumerate(self._parameters) if (g := p.grad) is not None]
        add_all_([self._sums[k] for k, _ in given], [gradient for _, gradient in given])
        for k, _ in given:
            self._used[k], self._parameters[k].grad = True, None

    def give(self) -> None:
        """Sets the sums as the parameters' gradients; of those that had none, none. Begins anew."""
        for parameter, total, used in zip(self._parameters, self._sums, self._used, strict=True):
            parameter.grad = total if used else None
        self._used = [False] * len(self._used)


def over_parts(statistics: Sequence[Tensor], means: int) -> Tensor:
    """A step's statistics from those of its equal parts: first ``means`` means, then sums."""
    if len(statistics) == 1:
        return statistics[0]
    stacked = torch.stack(list(statistics))
    return torch.cat([stacked[:, :means].mean(0), stacked[:, means:].sum(0)])
