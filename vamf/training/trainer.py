"""Training steps of one run: network, moving average, optimiser, and nothing about Ray."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vamf.data.dataset import Dataset
from vamf.distributed import Workers
from vamf.experiment import Experiment, Optimiser
from vamf.flow.tangents import boundary_velocity
from vamf.random import seed_of
from vamf.training.objective import Objective
from vamf.typing import Velocity

Wrap = Callable[[nn.Module], nn.Module]


class NonFiniteLoss(FloatingPointError):
    """The loss of a step was infinite or not a number: the run cannot go on."""


def learning_rate(optim: Optimiser, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from ``lr`` to ``final * lr`` at the last step."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(steps - optim.warmup, 1)
    return optim.lr * (optim.final + (1 - optim.final) * (1 + math.cos(math.pi * progress)) / 2)


def build_networks(
    experiment: Experiment, shape: tuple[int, ...], device: torch.device
) -> tuple[nn.Module, AveragedModel]:
    """The network with weights drawn from the experiment's seed, and its moving average."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(experiment.seed, "weights"))
        net = experiment.model.build(shape)
    net = net.to(device)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(experiment.ema))
    ema.requires_grad_(False).eval()
    ema.n_averaged.fill_(1)  # the average starts at the initial weights
    return net, ema


class Trainer:
    """Takes steps; its whole state is in ``state_dict``, everything random in (seed, step)."""

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        workers: Workers = Workers(),  # noqa: B008
        wrap: Wrap = lambda objective: objective,
    ) -> None:
        self.experiment, self.dataset, self.workers = experiment, dataset, workers
        self.net, self.ema = build_networks(experiment, dataset.shape, workers.device)
        self.objective = Objective(experiment, self.net, self.v_hat, dataset, workers)
        self.wrapped = wrap(self.objective)
        optim = experiment.optim
        self.optimiser = torch.optim.Adam(
            self.net.parameters(), optim.lr, (optim.beta1, optim.beta2), fused=True
        )
        self.step = 0
        self._losses: list[Tensor] = []

    @property
    def v_hat(self) -> Velocity:
        """The proxy of the marginal velocity that the experiment names."""
        return boundary_velocity(self.ema if self.experiment.proxy == "ema" else self.net)

    @property
    def beta(self) -> float:
        """beta in the coming step."""
        return self.objective.beta(self.step)

    def train_step(self) -> None:
        """One step of the optimiser and of the moving average; nothing waits for the device."""
        e = self.experiment
        torch.manual_seed(seed_of(e.seed, "dropout", self.workers.rank, self.step))
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(e.optim, self.step, e.steps)
        self.optimiser.zero_grad()
        terms = self.wrapped(self.step)
        terms.loss.backward()
        self.optimiser.step()
        self.ema.update_parameters(self.net)
        self._losses.append(torch.stack([terms.loss.detach(), terms.squared_error.mean()]))
        self.step += 1

    def collect(self) -> dict[str, float]:
        """Means over the steps since the last call, over all workers.

        Raises NonFiniteLoss, on every worker alike, naming the first step whose loss was not
        finite. Waits for the device.
        """
        if not self._losses:
            return {}
        losses = self.workers.sum(torch.stack(self._losses)).cpu() / self.workers.world
        bad = (~losses.isfinite().all(1)).nonzero()
        if len(bad):
            step = self.step - len(losses) + int(bad[0]) + 1
            raise NonFiniteLoss(f"the loss of step {step} is not finite")
        self._losses.clear()
        weighted, squared_error = losses.mean(0).tolist()
        numbers = math.prod(self.dataset.shape)
        return {"loss/train": weighted, "loss/per_dimension": squared_error / numbers}

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient, averaged over workers."""
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was taken, bit for bit."""
        self.step = state["step"]
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
