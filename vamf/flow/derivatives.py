"""Derivatives of the network in forward mode: the only place that calls ``torch.func.jvp``."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vamf.flow.duals import Dual, in_dual_mode, linearly, value_of
from vamf.typing import AverageVelocity, Sample, Scalars, Time, expand_like

Inputs = tuple[Sample, Time, Time]
LEVEL = 0
"""torch's only level of forward mode."""
_in_jvp = False
"""Whether one of the derivatives below is being computed."""


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
    Where duals are carried, ``v_tan`` may be that of the last samples only, which the derivative
    is of, too; it has no graph.
    """
    if in_dual_mode():
        moving = Dual(t, torch.ones_like(t[len(z) - len(v_tan) :]))
        return _carry(u, Dual(z, v_tan), r, moving)
    return _jvp(u, (z, r, t), (v_tan, torch.zeros_like(r), torch.ones_like(t)))


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
    if in_dual_mode():
        return _carry(u, Dual(z, direction), r, t)[1]
    zero = torch.zeros_like(r)
    return _jvp(u, (z, r, t), (direction, zero, zero))[1]


def terminal_derivative(u: AverageVelocity, z: Sample, r: Time, t: Time) -> tuple[Sample, Sample]:
    """Returns u(z, r, t) and du/dr: along the tangent (0, 1, 0) of (z, r, t).

    Both results carry gradients if these are enabled; where duals are carried, du/dr has no graph.
    """
    still = torch.zeros_like(z)
    if in_dual_mode():
        return _carry(u, Dual(z, still), Dual(r, torch.ones_like(r)), t)
    return _jvp(u, (z, r, t), (still, torch.ones_like(r), torch.zeros_like(t)))


def _carry(u: AverageVelocity, z: Dual, r: Time | Dual, t: Time | Dual) -> tuple[Sample, Sample]:
    """Of a network that takes duals."""
    out: Any = u(z, r, t)  # type: ignore[arg-type]
    return out.value, out.tangent


def apply_with_tangent(function: Callable[..., Tensor], *args: Any) -> Any:
    """A function that keeps samples apart, of duals, tensors (batch, ...) and other things."""
    duals = [a for a in args if isinstance(a, Dual)]
    value = function(*map(value_of, args))
    if not duals:
        return value
    values = [a[duals[0].n_constant :] if isinstance(a, Tensor) else a for a in map(value_of, args)]
    moving = [k for k, a in enumerate(args) if isinstance(a, Dual)]

    def of_moving(*parts: Tensor) -> Tensor:
        given = dict(zip(moving, parts, strict=True))
        return function(*(given.get(k, value) for k, value in enumerate(values)))

    with torch.no_grad():
        primals, directions = (tuple(values[k] for k in moving), tuple(d.tangent for d in duals))
        return Dual(value, torch.func.jvp(of_moving, primals, directions)[1])


def affine(
    x: Any,
    weight: Tensor | None,
    whole: Callable[[Tensor], Tensor],
    linear: Callable[[Tensor], Tensor],
) -> Any:
    """``whole(x)``, in forward mode with the tangent taken through ``linear``, its linear part.

    Of a tensor, or of a dual.

    torch's own rule of a convolution or a matrix product adds the product of ``x`` with the tangent
    of ``weight`` even where that is 0: a jvp then costs three forwards rather than two. The result
    is the same to the bit. Without a ``weight`` the map is a constant one.
    """
    if isinstance(x, Dual):
        return linearly(x, whole, linear)
    weights = () if weight is None else (weight,)
    both = lambda primal, dx: (whole(primal), linear(dx))  # noqa: E731
    return by_formula(x, weights, whole, both, differentiable=True)


def by_formula(
    x: Tensor,
    weights: Iterable[Tensor],
    whole: Callable[[Tensor], Tensor],
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    differentiable: bool = False,
) -> Tensor:
    """``whole(x)``, in forward mode by ``both(x, dx)``, which returns it and its tangent.

    Where a weight has a tangent, and in ``textbook_derivative``, torch's own rules are used; also
    where the tangent needs a graph, unless ``both`` is ``differentiable``.
    """
    if not _in_jvp or (torch.is_grad_enabled() and not differentiable):
        return whole(x)
    primal, tangent = forward_ad.unpack_dual(x, level=LEVEL)
    if tangent is None or any(map(_has_tangent, weights)):
        return whole(x)
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
