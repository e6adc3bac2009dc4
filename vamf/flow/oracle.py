"""The exact marginal velocity v(z, t) = E[e - x | z] of data for which it has a closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vamf.typing import Label, Sample, Scalars, Time, Velocity

FAR = -1e30
"""Added to the logarithm of a weight, to make it 0."""
SMALLEST_T = 1e-6
"""Smaller times are raised to this one: at t = 0 the posterior of the noise is undefined."""


@dataclass(frozen=True)
class MixtureVelocity:
    """Data from equally likely Gaussians N(centre_k, std^2 I), in flat coordinates.

    On the linear path z | k is N((1 - t) c_k, S I) with S = (1 - t)^2 std^2 + t^2, hence with
    m = z - (1 - t) c_k, E[e | z, k] = t m / S, E[x | z, k] = c_k + (1 - t) std^2 m / S, and v is
    the mean of E[e - x | z, k] under the posterior of k, a softmax of -|m|^2 / 2 S.
    """

    centres: Tensor
    """(K, d)."""
    std: float
    """Standard deviation of each component along each axis, positive."""

    def __post_init__(self) -> None:
        if self.centres.ndim != 2 or not self.std > 0:
            raise ValueError(
                "a mixture needs centres (K, d) and a positive std; "
                f"got {tuple(self.centres.shape)} and {self.std}"
            )

    def __call__(self, z: Sample, t: Time) -> Sample:
        flat, s = z.flatten(1), t.clamp_min(SMALLEST_T)[:, None]
        centres = self.centres.to(z)
        variance = (1 - s) ** 2 * self.std**2 + s**2
        # |z - (1 - t) c|^2 without the (batch, K, d) differences; |z|^2 is the same for all k.
        shrunk = (1 - s) * centres.square().sum(1) - 2 * flat @ centres.T
        posterior = (-(1 - s) * shrunk / (2 * variance)).softmax(1)
        centre = posterior @ centres
        away = flat - (1 - s) * centre
        noise_less_data = (s - (1 - s) * self.std**2) / variance * away - centre
        return noise_less_data.reshape(z.shape)


@dataclass(frozen=True)
class EmpiricalVelocity:
    """Data uniform on finitely many points: the empirical marginal velocity of a data set.

    v(z, t) = sum_i w_i (z - x_i) / t with w = softmax(-|z - (1 - t) x_i|^2 / 2 t^2). In high
    dimension one point has all the weight except near t = 1: this is the velocity of the given
    points, not of the population from which they were drawn.
    """

    points: Tensor
    """(N, ...): float, or uint8 pixels, which are mapped to [-1, 1]."""
    chunk: int = 8192
    """Points in one chunk of the sum: limits the memory and does not change the result."""
    labels: Label | None = None
    """The points' classes, (N,): a sample with a label then sees those of its class alone."""

    def __call__(
        self, z: Sample, t: Time, y: Label | None = None, kappa: Scalars | None = None
    ) -> Sample:
        """``y`` (batch,) are the classes of ``z``; one that no point has stands for all of them.

        ``kappa``, a network's guidance scale, is not used.
        """
        # In float64: squared distances are divided by t^2, and only their differences matter.
        flat, s = z.flatten(1).double(), t.double().clamp_min(SMALLEST_T)[:, None]
        best = torch.full_like(s, -math.inf)
        total, mean = torch.zeros_like(s), torch.zeros_like(flat)
        others = self._others(y)
        parts = self.points.to(z.device).split(self.chunk)
        for index, part in enumerate(parts):  # a softmax, chunk by chunk
            x = _values(part)
            logits = _logits(flat, x, s)
            if others is not None:  # finite, or a chunk without the class would give NaN
                logits = logits + FAR * others.split(self.chunk, dim=1)[index]
            new = torch.maximum(best, logits.amax(1, keepdim=True))
            weights, keep = (logits - new).exp(), (best - new).exp()
            total, mean = total * keep + weights.sum(1, keepdim=True), mean * keep + weights @ x
            best = new
        return ((flat - mean / total) / s).reshape(z.shape).to(z.dtype)

    def _others(self, y: Label | None) -> Tensor | None:
        """Which points are not of a sample's class, (batch, N) booleans; None if all count."""
        if self.labels is None or y is None:
            return None
        own = y[:, None] == self.labels.to(y.device)
        return ~own & own.any(1, keepdim=True)


class BatchProxy:
    """The proxy v_B: the empirical velocity of each step's own batch (arXiv 2512.11831).

    v_B(z, t) = sum_j softmax_j(-|z - (1 - t) x_j|^2 / 2 t^2) (z - x_j) / t over the batch, without
    a pass of a network; over all data it is the oracle. The source uses it in place of v_cond for a
    random fifth of the samples, in target and tangent. It has no points before ``for_batch``.
    """

    def __call__(self, z: Sample, t: Time) -> Sample:
        raise AssertionError("for_batch was not called")


def for_batch(v_hat: Velocity, x: Sample, labels: Label | None = None) -> Velocity:
    """The proxy of a step whose whole batch is ``x``; only a ``BatchProxy`` depends on it."""
    return EmpiricalVelocity(x, labels=labels) if isinstance(v_hat, BatchProxy) else v_hat


def _values(points: Tensor) -> Tensor:
    flat = points.flatten(1).double()
    return flat / 127.5 - 1 if points.dtype == torch.uint8 else flat


def _logits(z: Tensor, x: Tensor, s: Tensor) -> Tensor:
    """-|z - (1 - t) x|^2 / 2 t^2 without terms common to all points, (batch, points)."""
    shrunk = (1 - s) * x.square().sum(1) - 2 * z @ x.T
    return -(1 - s) * shrunk / (2 * s.square())
