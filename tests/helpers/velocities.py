"""Networks, draws and closed-form velocities in float64 that tests of objectives share."""

import torch

from vamf.flow.objectives.terms import Draws
from vamf.rng import generator
from vamf.typing import expand_like

SPREAD = torch.tensor([0.5, 2.0], dtype=torch.float64)
"""Standard deviations of Gaussian data, one for each axis."""


class Net(torch.nn.Module):
    """u(z, r, t) of points with curvature in all of its arguments."""

    def __init__(self):
        super().__init__()
        g = generator("objective net")
        self.w1 = torch.nn.Parameter(torch.randn(4, 16, generator=g).double() / 2)
        self.w2 = torch.nn.Parameter(torch.randn(16, 2, generator=g).double() / 4)

    def forward(self, z, r, t):
        return torch.tanh(torch.cat([z, r[:, None], t[:, None]], 1) @ self.w1) @ self.w2


def point_draws(n=8, n_equal=3, x=None):
    """Points, noise and times, with t - r of .05 or more; data ``x`` in place of random ones."""
    g = generator("objective draws", n)
    data, e = torch.randn(2, n, 2, generator=g, dtype=torch.float64)
    times = 0.05 + 0.9 * torch.rand(2, n, generator=g, dtype=torch.float64)
    t = times.amax(0)
    r = torch.cat([t[:n_equal], times.amin(0).clamp_max(t - 0.05)[n_equal:].clamp_min(0)])
    return Draws(data if x is None else x.expand_as(data), e, r, t, n_equal)


def uniforms(n=8):
    return torch.rand(n, generator=generator("objective uniform"), dtype=torch.float64)


def gradient(loss, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def of_one_point(x0):
    """u and v of the data set {x0}, whose paths are straight: (z - x0) / t."""
    return lambda z, r, t: (z - x0) / expand_like(t, z), lambda z, t: (z - x0) / expand_like(t, z)


def sigma(t):
    """The standard deviations of z at time t of Gaussian data, (batch, 2)."""
    return ((1 - t[:, None]).square() * SPREAD**2 + t[:, None].square()).sqrt()


def gaussian_velocity(z, t):
    """v(z, t) = E[e - x | z] = z sigma'(t) / sigma(t)."""
    return z * (t[:, None] - (1 - t[:, None]) * SPREAD**2) / sigma(t).square()


def gaussian_average(z, r, t):
    """The mean of v along its own flow, which takes z to z sigma(r) / sigma(t)."""
    gap = (t - r)[:, None]
    mean = z * (1 - sigma(r) / sigma(t)) / torch.where(gap == 0, 1.0, gap)
    return torch.where(gap == 0, gaussian_velocity(z, t), mean)


def gaussian_draws(n, n_equal=0):
    """The same of Gaussian data."""
    d = point_draws(n, n_equal)
    return d._replace(x=SPREAD * d.x)


def z_scores(loss, d, scale=1.0, chunk=500):
    """The mean gradient of ``loss(u, part)`` at u = scale times the Gaussian average velocity.

    In six directions of u, divided by its standard error over parts of the draws.
    """
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)

    def u(z, r, t):
        features = torch.cat([z, z * t[:, None], torch.sin(z) * (1 + r[:, None])], 1)
        return scale * gaussian_average(z, r, t) + (theta * features).reshape(-1, 3, 2).sum(1)

    found = [torch.autograd.grad(loss(u, part), theta)[0] for part in d.parts(chunk)]
    slopes = torch.stack(found)
    return slopes.mean(0) / slopes.std(0) * len(slopes) ** 0.5
