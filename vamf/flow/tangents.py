"""The tangent of the jvp: a mixture of the conditional velocity and a deterministic proxy."""

import torch

from vamf.typing import AverageVelocity, Beta, Label, Sample, Time, Velocity, expand_like


def boundary_velocity(u: AverageVelocity) -> Velocity:
    """The proxy v_hat(z, t) = sg[u(z, t, t)]: a network's own velocity, at r = t.

    With the trained network and beta = 1 this is the tangent of improved Mean Flows (arXiv
    2512.02012); with its moving average it is the proxy of arXiv 2605.09235. Labels after t are
    passed on to a conditional network.
    """

    def velocity(z: Sample, t: Time, *y: Label) -> Sample:
        with torch.no_grad():
            return u(z, t, t, *y)

    return velocity


def mix_tangent(v_cond: Sample, z: Sample, t: Time, beta: Beta, v_hat: Velocity) -> Sample:
    """v_tan = (1 - beta) v_cond + beta v_hat(z, t) (arXiv 2605.09235); beta in [0, 1].

    If beta is the number 0 the proxy is not evaluated; if it is 1 the result does not depend on
    v_cond. A tensor beta, (batch,), gives each sample its own weight.
    """
    if isinstance(beta, torch.Tensor):
        return torch.lerp(v_cond, v_hat(z, t), expand_like(beta, z).to(z.dtype))
    if beta == 0:
        return v_cond
    if beta == 1:
        return v_hat(z, t)
    return torch.lerp(v_cond, v_hat(z, t), beta)
