"""Replays the forward and backward pass of a step as one CUDA graph, launched at once."""

import warnings
from collections.abc import Hashable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vamf.compat.torch import copy_all_, leaves, map_tensors
from vamf.errors import first_line
from vamf.flow.objectives.terms import LossTerms
from vamf.training.step.objective import Inputs, Objective

WARM_UP = 3
"""Steps that run without a graph before the capture: they compile kernels and fill caches."""


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """One stream for all runs of a process: cuBLAS keeps 64 MiB for every stream it has used."""
    return torch.cuda.Stream(device)


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    tensors: Sequence[Tensor]
    """The inputs whose values are replaced."""
    terms: LossTerms
    gradients: Sequence[Tensor | None]


class Captured:
    """Computes an objective's loss and gradients; from the fourth step on, replays a CUDA graph.

    Steps whose inputs differ in more than the values of tensors get separate graphs. The returned
    values and the gradients are valid until the next call.
    """

    def __init__(self, objective: Objective, share: float = 1.0) -> None:
        """``share`` is the factor of the gradients: a micro-batch's share of the batch."""
        self._objective, self.share = objective, share
        self._parameters = [p for p in objective.net.parameters() if p.requires_grad]
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._taken: dict[Hashable, int] = {}
        self._aside = _aside(objective.workers.device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: Inputs) -> LossTerms:
        """Computes a step's loss and gradients; the parameters must have no gradients before."""
        values = leaves(inputs)
        kind = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in values)
        taken = self._taken.get(kind, 0)
        self._taken[kind] = taken + 1
        if taken < WARM_UP:
            return self._aside_from_others(inputs)
        if kind not in self._graphs:
            self._graphs[kind] = self._capture(inputs)
        graph = self._graphs[kind]
        if graph is None:
            return self._aside_from_others(inputs)
        return self._replay(graph, [a for a in values if isinstance(a, Tensor)])

    def _step(self, inputs: Inputs) -> LossTerms:
        terms = self._objective.terms(inputs)
        terms.loss.backward(torch.full_like(terms.loss, self.share))
        return terms._replace(loss=terms.loss.detach())

    def _aside_from_others(self, inputs: Inputs) -> LossTerms:
        """Runs a step without a graph, on a stream of its own, as capturing requires."""
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            terms = self._step(inputs)
        torch.cuda.current_stream().wait_stream(self._aside)
        return terms

    def _capture(self, inputs: Inputs) -> _Graph | None:
        """Captures a step; None, with a warning, if it waits for the device, as a proxy may."""
        own: Inputs = map_tensors(torch.clone, inputs)
        graph = torch.cuda.CUDAGraph()
        # Meanwhile another thread, which writes a checkpoint, may wait for the device.
        mode, aside = "thread_local", self._aside
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode=mode):
                terms = self._step(own)
        except RuntimeError as error:
            for parameter in self._parameters:
                parameter.grad = None
            reason = first_line(error)
            warnings.warn(f"a step cannot be captured as a CUDA graph: {reason}", stacklevel=2)
            return None
        tensors = [a for a in leaves(own) if isinstance(a, Tensor)]
        gradients = [p.grad for p in self._parameters]
        return _Graph(graph, tensors, terms, gradients)

    def _replay(self, found: _Graph, tensors: Sequence[Tensor]) -> LossTerms:
        copy_all_(found.tensors, tensors)
        found.graph.replay()
        for parameter, gradient in zip(self._parameters, found.gradients, strict=True):
            parameter.grad = gradient
        return found.terms


def captured(objective: Objective, share: float = 1.0) -> Captured | None:
    """A ``Captured`` objective if its steps can be captured (compiled, on a GPU), else None."""
    return Captured(objective, share) if objective.execution.capture else None
