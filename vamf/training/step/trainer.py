"""The training steps of one run: network, moving average and optimiser; independent of Ray."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vamf.data.dataset import Dataset
from vamf.diagnostics.adaptive import AdaptiveBeta, AdaptiveBetaState
from vamf.diagnostics.landscape import Landscape
from vamf.diagnostics.probe import Probe
from vamf.distributed import Workers
from vamf.errors import NonFiniteLoss
from vamf.experiment import Experiment
from vamf.experiment_settings import Optimiser, require_divisor
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss
from vamf.flow.objectives.terms import Draws, LossTerms
from vamf.models.layers import with_rows
from vamf.rng import seed_default, seed_of
from vamf.training.landscape_probe import probe, probe_ratios
from vamf.training.step.accumulation import GradientSum, over_parts
from vamf.training.step.cuda_graph_step import Captured, captured
from vamf.training.step.execution import Execution
from vamf.training.step.networks import build_networks
from vamf.training.step.objective import Inputs, Objective, beta_at
from vamf.training.step.proxies import build_proxy
from vamf.typing import Beta, Estimates, Time

Wrap = Callable[[nn.Module], nn.Module]
MEANS = 2
"""The first results of ``watched``, which are means over samples; the others are sums."""


def learning_rate(optim: Optimiser, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up, then a cosine from ``lr``.

    The cosine would reach ``final * lr`` at step ``steps``, one after the last, as in torch and
    optax.
    """
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(steps - optim.warmup, 1)
    return optim.lr * (optim.final + (1 - optim.final) * (1 + math.cos(math.pi * progress)) / 2)


def watched(terms: LossTerms, draws: Draws) -> Tensor:
    """A step's statistics, (7,): two means, then sums and counts; does not wait for the device.

    Besides the first ``n_equal`` samples, a distribution of times may have others with r = t.
    """
    error, interior = terms.squared_error, draws.r < draws.t
    interior[: terms.n_equal] = False
    means = [terms.loss.detach(), error.mean()]
    sums = [error.masked_fill(mask, 0).sum() for mask in (interior, ~interior)]
    counts = [mask.sum(dtype=error.dtype) for mask in (~interior, interior)]
    return torch.stack([*means, *sums, terms.squared_correction.sum(), *counts])


def named_metrics(collected: Tensor, numbers: int) -> dict[str, float]:
    """Named metrics from averaged results of ``watched``; ``numbers`` is the size of a sample.

    The boundary is r = t, where the squared error is that of flow matching; the interior is r < t.
    Each is omitted if it has no samples.
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
    """Takes training steps. ``state_dict`` is its whole state; draws depend on (seed, step)."""

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        workers: Workers = Workers(),  # noqa: B008
        wrap: Wrap = lambda objective: objective,
    ) -> None:
        self.experiment, self.dataset, self.workers = experiment, dataset, workers
        self.net, self.ema = build_networks(experiment, dataset.shape, workers.device)
        self.execution = Execution.of(experiment.compute, workers.device)
        self.execution.arrange(self.net, self.ema)
        self.v_hat = build_proxy(experiment, self.net, self.ema, workers.device)
        self.objective = Objective(experiment, self.net, self.v_hat, dataset, workers)
        self.stage = len(experiment.stages)
        # Captured gradients are averaged afterwards: DistributedDataParallel's hooks cannot be
        # captured.
        capture = self.objective.execution.capture
        self._wrapped: Any = self.objective if capture else wrap(self.objective)
        chosen = experiment.compute.accumulate
        self._chooses = chosen == "auto" and workers.device.type == "cuda"
        self.split(1 if chosen == "auto" else chosen)
        self.begin(0)
        optim = experiment.optim
        self.optimiser = torch.optim.Adam(
            self.net.parameters(), optim.lr, (optim.beta1, optim.beta2), fused=True
        )
        self.step = 0
        self._losses: list[Tensor] = []

    def split(self, micro_batches: int) -> None:
        """Sets into how many micro-batches each step is split.

        Raises ValueError if they do not divide a worker's share of the batch.
        """
        share = self.experiment.batch // self.workers.world
        require_divisor(micro_batches, share, self.workers.world)
        self.micro_batches = micro_batches
        self._captured = captured(self.objective, 1 / micro_batches)
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        several = self._captured is not None and micro_batches > 1
        self._sum = GradientSum(parameters) if several else None

    @property
    def samples_at_once(self) -> int:
        """The number of samples of one forward pass: a micro-batch of a worker's share."""
        return self.experiment.batch // self.workers.world // self.micro_batches

    def begin(self, stage: int) -> None:
        """Sets the objective to that of a stage: its loss, times, beta and proxy."""
        if stage == self.stage:
            return
        first, own = self.experiment.stage(stage)
        last = stage == len(self.experiment.stages)
        v_hat = self.v_hat if last else build_proxy(own, self.net, self.ema, self.workers.device)
        self.objective.begin(own, v_hat, first)
        self.stage = stage
        self.split(self.micro_batches)  # forgets captured steps

    def beta(self, t: Time) -> Beta:
        """beta of the experiment itself, after all stages, at times ``t`` in the next step."""
        return beta_at(self.experiment, self.step, self.objective.adapted)(t)

    def probe(self, plan: Probe) -> Landscape:
        """Measures the beta landscape of the current weights; does not change training."""
        e = self.experiment
        return probe(e, self.net, self.v_hat, self.beta, self.workers, plan=plan, step=self.step)

    def ratios(self, samples: int) -> Estimates:
        """Variance ratio, Jacobian and curvature of the current moving average."""
        return probe_ratios(self.experiment, self.ema, self.workers.device, samples)

    def _adapt(self) -> None:
        rule, state = self.objective.experiment.beta, self.objective.adapted
        if isinstance(rule, AdaptiveBeta) and rule.due(self.step - self.objective.first):
            assert state is not None
            self.objective.adapted = state.updated(rule, self.probe(rule.probe).tables)

    def train_step(self) -> None:
        """One step of the optimiser and of the moving average; does not wait for the device."""
        e = self.experiment
        self.begin(e.stage_at(self.step))
        self._adapt()
        dropout = seed_of(e.seed, "dropout", self.workers.rank, self.step)
        seed_default(dropout, self.workers.device)
        own, first = self.objective.experiment, self.objective.first
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(own.optim, self.step - first, own.steps)
            group["betas"] = own.optim.beta1, own.optim.beta2
        self.optimiser.zero_grad()
        with self.execution.step():
            statistics = self._differentiated()
        self.optimiser.step()
        if (self.step + 1) % e.ema_every == 0:
            self.ema.update_parameters(self.net)
        self._losses.append(statistics)
        self.step += 1

    def _differentiated(self) -> Tensor:
        """The step's statistics on this worker; sets the gradients, averaged over all workers."""
        inputs, count = self.objective.inputs(self.step), self.micro_batches
        parts = [inputs.micro_batch(index, count) for index in range(count)]
        if self._captured is not None:
            found = self._replayed(self._captured, parts)
        else:
            found = [*map(self._passed, parts[:-1]), self._passed(parts[-1], last=True)]
        return over_parts(found, MEANS)

    def _passed(self, part: Inputs, last: bool = False) -> Tensor:
        """The statistics of a micro-batch, whose gradients are added to those before it."""
        wrapped = self._wrapped
        waits = isinstance(wrapped, DistributedDataParallel) and not last
        with wrapped.no_sync() if waits else nullcontext():  # workers average the sums
            terms: LossTerms = wrapped(part)
            terms.loss.backward(torch.full_like(terms.loss, 1 / self.micro_batches))
        return watched(terms, part.draws)

    def _replayed(self, step: Captured, parts: Sequence[Inputs]) -> list[Tensor]:
        """As ``_passed``, for all micro-batches, by a captured step."""
        found = []
        for part in parts:
            found.append(watched(step(part), part.draws))
            if self._sum is not None:
                self._sum.take()
        if self._sum is not None:
            self._sum.give()
        self._average_gradients()
        return found

    def _average_gradients(self) -> None:
        found = [(p, p.grad) for p in self.net.parameters() if p.grad is not None]
        means = self.workers.averaged([gradient for _, gradient in found])
        for (parameter, _), mean in zip(found, means, strict=True):
            parameter.grad = mean

    def collect(self) -> dict[str, float]:
        """Means over the steps since the last call, over all workers.

        Raises NonFiniteLoss on every worker, with the first step whose loss was not finite. Waits
        for the device.
        """
        if not self._losses:
            return {}
        losses = self.workers.sum(torch.stack(self._losses)).cpu().double() / self.workers.world
        bad = (~losses.isfinite().all(1)).nonzero()
        if len(bad):
            step = self.step - len(losses) + int(bad[0]) + 1
            raise NonFiniteLoss(f"the loss of step {step} is not finite{self._why(step)}")
        self._losses.clear()
        return named_metrics(losses.mean(0), math.prod(self.dataset.shape)) | self._alpha()

    def _why(self, step: int) -> str:
        """The explanation if a step's data, which are drawn again, are not finite; else empty."""
        e = self.experiment
        data = self.dataset.batch(step - 1, e.batch, e.seed, self.workers.device)
        return "" if data.isfinite().all() else "; neither are its data"

    def _alpha(self) -> dict[str, float]:
        """alpha of the last step, if the loss has one."""
        own, step = self.objective.experiment, self.step - 1 - self.objective.first
        if not isinstance(own.loss, AlphaFlowLoss):
            return {}
        return {"schedule/alpha": own.loss.alpha(own.progress(step))}

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient, averaged over workers."""
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    def state_dict(self) -> dict[str, Any]:
        """All state that the next step depends on."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            **({"beta": adapted._asdict()} if (adapted := self.objective.adapted) else {}),
            **({"micro_batches": self.micro_batches} if self._chooses else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state of ``state_dict``; training continues bit for bit."""
        self.step = state["step"]
        self.begin(self.experiment.stage_at(self.step))
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        for parameter, moments in self.optimiser.state.items():
            for name, moment in moments.items():
                if moment.ndim == parameter.ndim:  # Adam's kernels ignore strides
                    grown = with_rows(moment, parameter)
                    moments[name] = torch.empty_like(parameter).copy_(grown)
        share, before = self.experiment.batch // self.workers.world, state.get("micro_batches", 1)
        if self._chooses and share % before == 0:
            self.split(before)
        if "beta" in state:
            self.objective.adapted = AdaptiveBetaState(**state["beta"])
