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
from vamf.flow.objectives.terms import Draws
from vamf.flow.samplers import sample
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
        self, net: Mapping[str, Tensor], ema: Mapping[str, Tensor], draws: DrawBlock
    ) -> Tensor:
        """The loss of each member, (seeds, betas), on draws without an axis of steps."""
        proxy = ema if self.experiment.proxy == "ema" else net
        over_betas = vmap(self._loss, in_dims=(0, 0, 0, None, None, None, None))
        over_seeds = vmap(over_betas, in_dims=(0, 0, None, 0, 0, 0, 0))
        x, e, r, t = (part.to(self.dtype) for part in draws)
        return over_seeds(dict(net), dict(proxy), self.betas, x, e, r, t)

    def _loss(
        self, net: Stacked, proxy: Stacked, beta: Tensor, x: Sample, e: Sample, r: Time, t: Time
    ) -> Tensor:
        return self.experiment.loss(
            self._velocity(net),
            Draws(x, e, r, t, self.n_equal),
            beta=beta.expand(len(x)),
            v_hat=boundary_velocity(self._velocity(proxy)),
        ).loss

    def _velocity(self, weights: Stacked) -> AverageVelocity:
        def u(z: Sample, r: Time, t: Time) -> Sample:
            return functional_call(self._template, weights, (z, r, t))

        return u

    def samples(self, weights: Mapping[str, Tensor], e: Sample, steps: int = 1) -> Tensor:
        """The samples of each member from the same noise, (seeds, betas, n, ...)."""

        def one(own: Stacked) -> Sample:
            return sample(self._velocity(own), e.to(self.dtype), steps)

        with torch.no_grad():
            return vmap(vmap(one))(dict(weights))
