"""Forward and backward pass of a step as one CUDA graph: launched at once, not kernel by kernel."""

import warnings
from collections.abc import Hashable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from vamf.flow.losses import LossTerms
from vamf.training.objective import Inputs, Objective

WARM_UP = 3
"""Steps that are taken as usual before one is captured: they compile, and fill caches."""


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """One stream for all runs of a process: cuBLAS keeps 64 MiB for each that it ever worked on."""
    return torch.cuda.Stream(device)


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    tensors: Sequence[Tensor]
    """The inputs that are replaced."""
    terms: LossTerms
    gradients: Sequence[Tensor | None]


class Captured:
    """The loss and the gradient of an objective, from the fourth step on by replaying the same.

    A step whose inputs differ in more than their tensors' values has a graph of its own. What is
    returned, and the gradients, last until the next call.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._parameters = [p for p in objective.net.parameters() if p.requires_grad]
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._taken: dict[Hashable, int] = {}
        self._aside = _aside(objective.workers.device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: Inputs) -> LossTerms:
        """Differentiates the step's loss; the parameters have no gradients before."""
        leaves, _ = tree_flatten(inputs)
        kind = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        taken = self._taken.get(kind, 0)
        self._taken[kind] = taken + 1
        if taken < WARM_UP:
            return self._aside_from_others(inputs)
        if kind not in self._graphs:
            self._graphs[kind] = self._capture(inputs)
        graph = self._graphs[kind]
        if graph is None:
            return self._aside_from_others(inputs)
        return self._replay(graph, [a for a in leaves if isinstance(a, Tensor)])

    def _step(self, inputs: Inputs) -> LossTerms:
        terms = self._objective.terms(inputs)
        terms.loss.backward()
        return terms._replace(loss=terms.loss.detach())

    def _aside_from_others(self, inputs: Inputs) -> LossTerms:
        """As usual, on a stream of its own, as capturing wants it."""
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            terms = self._step(inputs)
        torch.cuda.current_stream().wait_stream(self._aside)
        return terms

    def _capture(self, inputs: Inputs) -> _Graph | None:
        """None where a step waits for the device, as a proxy may: it is only slower."""
        own: Inputs = tree_map_only(Tensor, torch.clone, inputs)
        graph = torch.cuda.CUDAGraph()
        # Another thread, which writes a checkpoint, may wait for the device meanwhile.
        mode, aside = "thread_local", self._aside
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode=mode):
                terms = self._step(own)
        except RuntimeError as error:
            for parameter in self._parameters:
                parameter.grad = None
            reason = next(iter(str(error).splitlines()), "")
            warnings.warn(f"a step cannot be captured as a CUDA graph: {reason}", stacklevel=2)
            return None
        tensors = [a for a in tree_flatten(own)[0] if isinstance(a, Tensor)]
        gradients = [p.grad for p in self._parameters]
        return _Graph(graph, tensors, terms, gradients)

    def _replay(self, found: _Graph, tensors: Sequence[Tensor]) -> LossTerms:
        torch._foreach_copy_(list(found.tensors), list(tensors))
        found.graph.replay()
        for parameter, gradient in zip(self._parameters, found.gradients, strict=True):
            parameter.grad = gradient
        return found.terms


def captured(objective: Objective) -> Captured | None:
    """If the objective's steps can be captured: compiled ones on a GPU."""
    on_gpu = objective.workers.device.type == "cuda"
    return Captured(objective) if on_gpu and objective.experiment.compute.compile else None
