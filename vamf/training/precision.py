"""In which numbers a network is computed; its weights and their optimiser stay in float32."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vamf.experiment import Compute
from vamf.typing import AverageVelocity, Label, Sample, Time


def in_precision(net: nn.Module, compute: Compute) -> AverageVelocity:
    """The network as it is, or with its weights rounded to bfloat16 at every call.

    Rounded, it takes and returns what it did, and gradients reach the weights. Statistics of
    normalisations, softmax and the embedding of times stay in float32 inside.
    """
    if compute.precision != "bfloat16":
        return net

    def rounded(z: Sample, r: Time, t: Time, *y: Label) -> Sample:
        weights: dict[str, Tensor] = {n: _rounded(p) for n, p in net.named_parameters()}
        return functional_call(net, weights, (z, r, t, *y))

    return rounded


def _rounded(weight: Tensor) -> Tensor:
    if weight.ndim == 4 and torch.compiler.is_compiling():
        return weight.to(torch.bfloat16, memory_format=torch.channels_last)
    return weight.bfloat16()


def allow(compute: Compute) -> None:
    """Sets for this process whether products of float32 matrices may be rounded to TF32."""
    exact = compute.precision == "float32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
