"""How a training step is computed, as one value that callers pass on.

It changes results by rounding only.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from vamf.experiment_settings import Compute
from vamf.flow.duals import dual_mode
from vamf.models.recomputation import recomputing
from vamf.training.step.precision import in_precision, matmul_precision, rounding_once
from vamf.typing import AverageVelocity


@dataclass(frozen=True)
class Execution:
    """Precision, use of the fast path, and use of a CUDA graph."""

    compute: Compute
    """The experiment's setting."""
    duals: bool
    """Whether dual numbers carry the tangents, with fused kernels and channels last."""
    capture: bool
    """Whether forward and backward pass are captured as one CUDA graph."""

    @classmethod
    def of(cls, compute: Compute, device: torch.device) -> Self:
        """The execution of an experiment's steps on a device."""
        fast = compute.compile
        return cls(compute, duals=fast, capture=fast and device.type == "cuda")

    def network(self, net: nn.Module) -> AverageVelocity:
        """The network in this precision."""
        return in_precision(net, self.compute)

    def arrange(self, *networks: nn.Module) -> None:
        """Converts weights to the memory layout that is fastest for this execution."""
        if self.duals:
            for net in networks:
                net.to(memory_format=torch.channels_last)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Within the block, networks are evaluated and forward-differentiated by this execution."""
        once = rounding_once() if self.duals else nullcontext()
        with dual_mode(self.duals), once, recomputing(self.compute.checkpointing):
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within the block, matrix products of both passes have this precision."""
        with matmul_precision(self.compute):
            yield
