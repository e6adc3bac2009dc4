"""Stacks networks, one for each (seed, beta), and computes all losses at once.

``torch.func.vmap`` turns the loss of one network into those of all. All betas of a seed have the
same draws, so values that do not depend on the network are computed once for each seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from vamf.experiment import Experiment
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss
from vamf.flow.objectives.terms import Draws
from vamf.flow.oracle import EmpiricalVelocity
from vamf.flow.samplers import euler, heun, sample
from vamf.flow.tangents import boundary_velocity
from vamf.reproduction.ensemble.draw_blocks import DrawBlock, equal_count
from vamf.training.step.networks import build_networks
from vamf.typing import AverageVelocity, Sample, Time

Stacked = dict[str, Tensor]
"""Parameters by name, each (seeds, betas, ...)."""


class StackedNetworks:
    """The architecture, the loss and the betas of all members."""

    def __init__(
        self,
        experiment: Experiment,
        betas: Sequence[float],
        seeds: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.experiment, self.dtype = experiment, dtype
        self.betas = torch.tensor(betas, dtype=dtype, device=device)
        self.n_equal = equal_count(experiment)
        shape = experiment.data.shape
        self._nets = [
            build_networks(replace(experiment, seed=seed), shape, device)[0].to(dtype)
            for seed in seeds
        ]
        self._template = self._nets[0].requires_grad_(False)

    def initial(self) -> Stacked:
        """The weights that a single run of each seed starts from, the same for all betas."""
        weights = [net.state_dict() for net in self._nets]
        count = len(self.betas)
        stacked = {name: torch.stack([w[name] for w in weights]) for name in weights[0]}
        return {name: s[:, None].repeat_interleave(count, 1) for name, s in stacked.items()}

    def losses(
        self,
        net: Mapping[str, Tensor],
        ema: Mapping[str, Tensor],
        draws: DrawBlock,
        alpha: float | Tensor = 0.0,
    ) -> Tensor:
        """The loss of each member, (seeds, betas), on draws without an axis of steps.

        ``alpha`` is that of an ``AlphaFlowLoss``, a number in [0, 1] or a tensor () in (0, 1).
        """

        def loss(net: Stacked, proxy: Stacked, beta: Tensor, own: DrawBlock) -> Tensor:
            return self._loss(net, proxy, beta, own, alpha)

        proxy = ema if self.experiment.proxy == "ema" else net
        over_betas = vmap(loss, in_dims=(0, 0, 0, None))
        over_seeds = vmap(over_betas, in_dims=(0, 0, None, 0))
        own = DrawBlock(*(part.to(self.dtype) for part in draws))
        return over_seeds(dict(net), dict(proxy), self.betas, own)

    def _loss(
        self, net: Stacked, proxy: Stacked, beta: Tensor, own: DrawBlock, alpha: float | Tensor
    ) -> Tensor:
        u, draws, loss = self._velocity(net), Draws(*own[:4], self.n_equal), self.experiment.loss
        weight = beta.expand(len(own.x))
        v_hat = boundary_velocity(self._velocity(proxy))
        if self.experiment.proxy == "batch":
            v_hat = EmpiricalVelocity(own.x)
        if isinstance(loss, AlphaFlowLoss):
            path = loss.path(alpha, u, draws, weight, v_hat)
            return loss.mean_flow.terms(u, draws, path, own.uniform, None, None, v_hat).loss
        return loss(u, draws, beta=weight, v_hat=v_hat, anchor_uniform=own.uniform).loss

    def _velocity(self, weights: Stacked) -> AverageVelocity:
        def u(z: Sample, r: Time, t: Time) -> Sample:
            return functional_call(self._template, weights, (z, r, t))

        return u

    def samples(self, weights: Mapping[str, Tensor], e: Sample) -> Tensor:
        """The samples of each member from the same noise, (seeds, betas, n, ...).

        By the sampler and the number of steps of the experiment's evaluation.
        """
        how = self.experiment.evaluation

        def one(own: Stacked) -> Sample:
            u, noise = self._velocity(own), e.to(self.dtype)
            if how.sampler == "average":
                return sample(u, noise, how.sampling_steps)
            solve = heun if how.sampler == "heun" else euler
            return solve(boundary_velocity(u), noise, how.sampling_steps)

        with torch.no_grad():
            return vmap(vmap(one))(dict(weights))
