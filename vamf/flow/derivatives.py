"""Derivatives of the network in forward mode: the only place that calls ``torch.func.jvp``."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vamf.typing import AverageVelocity, Sample, Scalars, Time, expand_like

Inputs = tuple[Sample, Time, Time]
LEVEL = 0
"""torch's only level of forward mode."""
_in_jvp = False
"""Whether one of the derivatives below is being computed. torch's own mark is frozen at False in
compiled code that calls the network before it differentiates it."""


def _jvp(u: AverageVelocity, primals: Inputs, tangents: Inputs) -> tuple[Sample, Sample]:
    def marked(z: Sample, r: Time, t: Time) -> Sample:
        global _in_jvp
        before, _in_jvp = _in_jvp, True
        try:
            return u(z, r, t)
        finally:
            _in_jvp = before

    return torch.func.jvp(marked, primals, tangents)  # type: ignore[return-value]


def total_derivative(
    u: AverageVelocity, z: Sample, r: Time, t: Time, v_tan: Sample
) -> tuple[Sample, Sample]:
    """Returns u(z, r, t) and its total derivative in t (arXiv 2505.13447, section 4.1).

    The derivative is (v_tan . d/dz) u + du/dt: along the tangent (v_tan, 0, 1) of (z, r, t). Both
    results carry gradients if these are enabled; inside ``torch.no_grad()`` there is no graph.
    """
    # Copies: compiled forward mode fails on views that begin in the middle of a tensor.
    primals = (z.clone(), r.clone(), t.clone())
    tangents = (v_tan.clone(), torch.zeros_like(r), torch.ones_like(t))
    return _jvp(u, primals, tangents)


def textbook_derivative(
    u: AverageVelocity, z: Sample, r: Time, t: Time, v_tan: Sample
) -> tuple[Sample, Sample]:
    """``total_derivative`` by torch's rules alone, slower: what the other is compared with."""
    tangents = (v_tan, torch.zeros_like(r), torch.ones_like(t))
    return torch.func.jvp(u, (z, r, t), tangents)  # type: ignore[return-value]


def directional_derivative(
    u: AverageVelocity, z: Sample, r: Time, t: Time, direction: Sample
) -> Sample:
    """(direction . d/dz) u(z, r, t): what the tangent alone adds, linear in ``direction``."""
    zero = torch.zeros_like(r)
    primals = (z.clone(), r.clone(), t.clone())
    return _jvp(u, primals, (direction.clone(), zero, zero))[1]


def affine(
    x: Tensor,
    weight: Tensor | None,
    whole: Callable[[Tensor], Tensor],
    linear: Callable[[Tensor], Tensor],
) -> Tensor:
    """``whole(x)``, in forward mode with the tangent taken through ``linear``, its linear part.

    torch's own rule of a convolution or a matrix product adds the product of ``x`` with the tangent
    of ``weight`` even where that is 0: a jvp then costs three forwards rather than two. The result
    is the same to the bit. Without a ``weight`` the map is a constant one.
    """
    constants = () if weight is None else (weight,)
    return with_rule(x, constants, whole, lambda value, d: (whole(value), linear(d)))


def with_rule(
    x: Tensor,
    constants: Sequence[Tensor],
    value: Callable[[Tensor], Tensor],
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """``value(x)``, in forward mode with the tangent that ``both(x, tangent)`` returns beside it.

    Where one of the ``constants`` has a tangent, torch's own rules apply.
    """
    if not _in_jvp:
        return value(x)
    primal, tangent = forward_ad.unpack_dual(x, level=LEVEL)
    if tangent is None or any(_has_tangent(c) for c in constants):
        return value(x)
    return forward_ad.make_dual(*both(primal, tangent), level=LEVEL)


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x, level=LEVEL).tangent is not None


def amplification(u: AverageVelocity, z: Sample, r: Time, t: Time, v: Sample) -> Sample:
    """J v with J = (t - r) du/dz - I: what a residual makes of noise v in the tangent.

    J is what multiplies v_cond - v in MeanFlow's residual (arXiv 2605.09235); it is -I at r = t.
    """
    return expand_like(t - r, z) * directional_derivative(u, z, r, t, v) - v


def hutchinson_trace(u: AverageVelocity, z: Sample, r: Time, t: Time, signs: Tensor) -> Scalars:
    """Tr(J J^T) of each sample, (batch,), estimated without bias: the mean of |J s|^2 over probes.

    ``signs`` are independent and +1 or -1 with probability 1/2 each, (probes, batch, ...).
    """
    return _total(amplification(u, z, r, t, s) for s in signs) / len(signs)


def exact_trace(u: AverageVelocity, z: Sample, r: Time, t: Time) -> Scalars:
    """Tr(J J^T) of each sample, (batch,): one derivative along every axis of the data."""
    return _total(amplification(u, z, r, t, axis) for axis in axes(z))


def axes(z: Sample) -> Iterator[Sample]:
    """The unit vectors of the data's axes, each of the shape of ``z``."""
    for index in range(z[0].numel()):
        axis = torch.zeros_like(z).flatten(1)
        axis[:, index] = 1
        yield axis.reshape(z.shape)


def _total(samples: Iterable[Sample]) -> Scalars:
    norms = [a.square().flatten(1).sum(1) for a in samples]
    return torch.stack(norms).sum(0)
