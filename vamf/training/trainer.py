"""Training steps of one run: network, moving average, optimiser, and nothing about Ray."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vamf.data.dataset import Dataset
from vamf.diagnostics.adaptive import Adapted, AdaptiveBeta
from vamf.diagnostics.landscape import Landscape
from vamf.diagnostics.probe import Probe
from vamf.diagnostics.ratios import Figures
from vamf.distributed import Workers
from vamf.experiment import Experiment, Optimiser
from vamf.flow.losses import LossTerms
from vamf.models.layers import with_rows
from vamf.random import seed_default, seed_of
from vamf.training.capture import captured
from vamf.training.networks import build_networks
from vamf.training.objective import Objective
from vamf.training.precision import allow
from vamf.training.probing import probe, probe_ratios
from vamf.training.proxies import build_proxy
from vamf.typing import Beta, Time

Wrap = Callable[[nn.Module], nn.Module]


class NonFiniteLoss(FloatingPointError):
    """The loss of a step was infinite or not a number: the run cannot go on."""


def learning_rate(optim: Optimiser, step: int, steps: int) -> float:
    """That of a step, counted from 0: a linear warm-up, then a cosine from ``lr``.

    The cosine would reach ``final * lr`` at step ``steps``, one after the last, as torch's and
    optax's do.
    """
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(steps - optim.warmup, 1)
    return optim.lr * (optim.final + (1 - optim.final) * (1 + math.cos(math.pi * progress)) / 2)


def watched(terms: LossTerms) -> Tensor:
    """What is collected of a step, (7,): two means, then sums and counts; nothing is waited for."""
    n, error = terms.n_equal, terms.squared_error
    means = [terms.loss.detach(), error.mean()]
    sums = [error[:n].sum(), error[n:].sum(), terms.squared_correction.sum()]
    counts = [error.new_full((), n), error.new_full((), len(error) - n)]
    return torch.stack([*means, *sums, *counts])


def figures(collected: Tensor, numbers: int) -> dict[str, float]:
    """The named figures of what ``watched`` gave, averaged; ``numbers`` a sample has.

    The boundary is r = t, where the squared error is flow matching's, the interior r < t; each is
    left out where no sample lay.
    """
    loss, error, boundary, interior, correction, equal, rest = collected.tolist()
    means = {
        "loss/train": loss,
        "loss/per_dimension": error / numbers,
        "loss/dudt": correction / (equal + rest),
    }
    if equal:
        means["loss/boundary"] = boundary / equal
    if rest:
        means["loss/interior"] = interior / rest
    return means


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
        allow(experiment.compute)
        self.net, self.ema = build_networks(experiment, dataset.shape, workers.device)
        if experiment.compute.compile:  # what convolutions are fast in on a GPU
            self.net.to(memory_format=torch.channels_last)
            self.ema.to(memory_format=torch.channels_last)
        self.v_hat = build_proxy(experiment, self.net, self.ema, workers.device)
        self.objective = Objective(experiment, self.net, self.v_hat, dataset, workers)
        self._captured = captured(self.objective)
        # What is captured is averaged afterwards: DistributedDataParallel's hooks cannot be.
        self._wrapped = self.objective if self._captured else wrap(self.objective)
        optim = experiment.optim
        self.optimiser = torch.optim.Adam(
            self.net.parameters(), optim.lr, (optim.beta1, optim.beta2), fused=True
        )
        self.step = 0
        self._losses: list[Tensor] = []

    def beta(self, t: Time) -> Beta:
        """beta in the coming step, of samples at times ``t``."""
        return self.objective.beta(self.step, t)

    def probe(self, plan: Probe) -> Landscape:
        """Measures the beta landscape of the present weights; training goes on bit for bit."""
        e = self.experiment
        return probe(e, self.net, self.v_hat, self.beta, self.workers, plan=plan, step=self.step)

    def ratios(self, samples: int) -> Figures:
        """Variance ratio, Jacobian and curvature of the present moving average."""
        return probe_ratios(self.experiment, self.ema, self.workers.device, samples)

    def _adapt(self) -> None:
        rule, state = self.experiment.beta, self.objective.adapted
        if isinstance(rule, AdaptiveBeta) and rule.due(self.step):
            assert state is not None
            self.objective.adapted = state.updated(rule, self.probe(rule.probe).tables)

    def train_step(self) -> None:
        """One step of the optimiser and of the moving average; nothing waits for the device."""
        e = self.experiment
        self._adapt()
        dropout = seed_of(e.seed, "dropout", self.workers.rank, self.step)
        seed_default(dropout, self.workers.device)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(e.optim, self.step, e.steps)
        self.optimiser.zero_grad()
        terms = self._differentiated()
        self.optimiser.step()
        if (self.step + 1) % e.ema_every == 0:
            self.ema.update_parameters(self.net)
        self._losses.append(watched(terms))
        self.step += 1

    def _differentiated(self) -> LossTerms:
        """The step's loss on this worker; the parameters have the gradient of all workers'."""
        terms: LossTerms
        if self._captured is not None:
            terms = self._captured(self.objective.inputs(self.step))
            self._average_gradients()
            return terms
        terms = self._wrapped(self.step)
        terms.loss.backward()
        return terms

    def _average_gradients(self) -> None:
        found = [(p, p.grad) for p in self.net.parameters() if p.grad is not None]
        means = self.workers.averaged([gradient for _, gradient in found])
        for (parameter, _), mean in zip(found, means, strict=True):
            parameter.grad = mean

    def collect(self) -> dict[str, float]:
        """Means over the steps since the last call, over all workers.

        Raises NonFiniteLoss, on every worker alike, naming the first step whose loss was not
        finite. Waits for the device.
        """
        if not self._losses:
            return {}
        losses = self.workers.sum(torch.stack(self._losses)).cpu().double() / self.workers.world
        bad = (~losses.isfinite().all(1)).nonzero()
        if len(bad):
            step = self.step - len(losses) + int(bad[0]) + 1
            raise NonFiniteLoss(f"the loss of step {step} is not finite{self._why(step)}")
        self._losses.clear()
        return figures(losses.mean(0), math.prod(self.dataset.shape)) | self._alpha()

    def _why(self, step: int) -> str:
        """Whether a step's data are to blame; drawn once more, as they depend on nothing else."""
        e = self.experiment
        data = self.dataset.batch(step - 1, e.batch, e.seed, self.workers.device)
        return "" if data.isfinite().all() else "; neither are its data"

    def _alpha(self) -> dict[str, float]:
        """alpha of the last step, if the loss has one."""
        rule, e = self.experiment.loss.alpha, self.experiment
        return {} if rule is None else {"schedule/alpha": rule((self.step - 1) / e.steps)}

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
            **({"beta": adapted._asdict()} if (adapted := self.objective.adapted) else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was taken, bit for bit."""
        self.step = state["step"]
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        for parameter, moments in self.optimiser.state.items():
            for name, moment in moments.items():
                if moment.ndim == parameter.ndim:  # Adam's kernels do not look at strides
                    grown = with_rows(moment, parameter)
                    moments[name] = torch.empty_like(parameter).copy_(grown)
        if "beta" in state:
            self.objective.adapted = Adapted(**state["beta"])
