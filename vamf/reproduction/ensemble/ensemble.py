"""Trains many small networks as one program: one for each (seed, beta) of an experiment.

Adam and the moving average are elementwise, so on stacked parameters they equal those of single
runs; the gradient of the sum of all losses gives each member its own gradient.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vamf.compat.torch import lerp_all_
from vamf.experiment import Experiment
from vamf.reproduction.ensemble.alpha_of_steps import AlphaOfSteps
from vamf.reproduction.ensemble.cuda_stream_runner import WARM_UP, CudaStreamRunner, RecordedWork
from vamf.reproduction.ensemble.draw_blocks import (
    BLOCK,
    DrawBlock,
    block_stream,
    draw_block,
    trainer_stream,
)
from vamf.reproduction.ensemble.requirements import check
from vamf.reproduction.ensemble.stacked_networks import Stacked, StackedNetworks
from vamf.training.step.trainer import learning_rate
from vamf.typing import Sample

TRACE_BATCHES = 8
"""Number of independent batches for the trace of the gradient's covariance."""


class Ensemble:
    """One experiment at all ``betas`` and ``seeds``, which replace its own.

    On a GPU a step is one replay of a CUDA graph on the ensemble's own stream; on the CPU the same
    code runs eagerly. An alpha-Flow has a graph for alpha = 1, one for 0 and one for all between.
    Draws are those of a ``Trainer`` of each seed (``"trainer"``), or are drawn in blocks on the
    ensemble's device (``"blocks"``), which is fast on a GPU.
    """

    def __init__(
        self,
        experiment: Experiment,
        betas: Sequence[float],
        seeds: Sequence[int],
        device: torch.device = torch.device("cpu"),  # noqa: B008
        draws: Literal["blocks", "trainer"] = "blocks",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check(experiment, betas, seeds)
        _keep_freed_memory()
        self.experiment, self.device, self.draws = experiment, device, draws
        self.betas, self.seeds = tuple(betas), tuple(seeds)
        self.members = StackedNetworks(experiment, betas, seeds, device, dtype)
        self.net: Stacked = {n: w.requires_grad_() for n, w in self.members.initial().items()}
        self.ema: Stacked = self.members.initial()
        self.lost = torch.full((len(seeds), len(betas)), -1, device=device)
        """The step, counted from 1, at which a member's loss was not finite; -1 otherwise."""
        self._count = torch.zeros(1, dtype=torch.long, device=device)
        self._optimise()
        self._alphas = AlphaOfSteps(experiment, experiment.steps + WARM_UP, device)
        self._alpha = self._alphas.fixed(0)
        stream = trainer_stream if draws == "trainer" else block_stream
        self._draw, self._loaded = stream(experiment, seeds, device), -1
        self._block: DrawBlock | None = None
        self._probe: DrawBlock | None = None
        self._trace = torch.zeros(self.lost.shape, dtype=torch.float64, device=device)
        self._take_step: RecordedWork | None = None
        self._take_trace: RecordedWork | None = None
        self._runner = CudaStreamRunner(device)
        self._runner.follow()

    def _optimise(self) -> None:
        """Creates Adam with its state, and the learning rates of all steps."""
        optim, steps = self.experiment.optim, self.experiment.steps
        # Adam's fused kernels take the rate as float32 on a GPU and as float64 on the CPU.
        precision = torch.float32 if self.device.type == "cuda" else torch.float64
        rates = [learning_rate(optim, step, steps) for step in range(steps + WARM_UP)]
        self._rates = torch.tensor(rates, dtype=precision, device=self.device)
        self._lr = torch.zeros((), dtype=precision, device=self.device)
        self._adam = torch.optim.Adam(
            self.net.values(),
            self._lr,
            (optim.beta1, optim.beta2),
            fused=True,
            capturable=self.device.type == "cuda",
        )
        for p in self.net.values():
            p.grad = torch.zeros_like(p)
        self._adam.step()  # creates the state; gradients are 0
        self._set_step(0)

    def _set_step(self, step: int) -> None:
        self.step = step
        self._count.fill_(step)
        for state in self._adam.state.values():
            state["step"].fill_(step)

    def advance(self, steps: int = 1) -> None:
        """Takes steps, at most to the experiment's last; does not wait for the device."""
        assert self.step + steps <= self.experiment.steps
        with self._runner():
            for _ in range(steps):
                if self.step // BLOCK != self._loaded:
                    self._loaded = self.step // BLOCK
                    self._block = _at_same_address(self._draw(self._loaded), self._block)
                self._follow_alpha()
                if self._take_step is None:
                    self._take_step = self._record_step()
                self._take_step()
                self.step += 1

    def _follow_alpha(self) -> None:
        """Forgets what was recorded if the next step's alpha needs another program."""
        if (alpha := self._alphas.fixed(self.step)) != self._alpha:
            self.wait()  # for replays, whose memory is freed
            self._alpha, self._take_step, self._take_trace = alpha, None, None

    def _record_step(self) -> RecordedWork:
        """Records a step; recording changes the state, which is restored."""
        before = {name: t.detach().clone() for name, t in self._state().items()}
        step = self._runner.record(self._step)
        self._restore(before)
        self._set_step(self.step)
        return step

    def _step(self) -> None:
        """One step of all members, with operations on the device only."""
        assert self._block is not None
        # The runs before a recording may go beyond the last step, whose block may be short.
        within = self._count.remainder(BLOCK).clamp_max(len(self._block.x) - 1)
        draws = DrawBlock(*(part.index_select(0, within).squeeze(0) for part in self._block))
        self._lr.copy_(self._rates.index_select(0, self._count).squeeze(0))
        losses = self._losses(draws)
        for p, g in zip(self.net.values(), self._differentiate(losses), strict=True):
            p.grad = g.contiguous()  # Adam's fused kernels do not look at strides
        self._adam.step()
        with torch.no_grad():
            averages, weights = list(self.ema.values()), list(self.net.values())
            lerp_all_(averages, weights, 1 - self.experiment.ema)
        self._count += 1
        fails = (self.lost < 0) & ~losses.isfinite()
        self.lost.copy_(torch.where(fails, self._count, self.lost))

    def _losses(self, draws: DrawBlock) -> Tensor:
        alpha = self._alphas(self._alpha, self._count)
        return self.members.losses(self.net, self.ema, draws, alpha)

    def _differentiate(self, losses: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(losses.sum(), list(self.net.values()))

    def gradients(self, draws: DrawBlock) -> Tensor:
        """The members' gradients, (seeds, betas, parameters), on draws without an axis of steps."""
        losses = self._losses(draws)
        return torch.cat([g.flatten(2) for g in self._differentiate(losses)], dim=2)

    def gradient_trace(self) -> Tensor:
        """The paper's ``tr_cov``, (seeds, betas) float64, valid after ``wait``.

        The trace of the covariance, over 8 independent batches of the training's size, of a
        batch's mean gradient, with the trained weights (arXiv 2605.09235, supplement). Draws are a
        function of (seed, step), the same for all betas of a seed.
        """
        keys = [(seed, "gradient_trace", self.step) for seed in self.seeds]
        with self._runner():
            new = draw_block(self.experiment, keys, TRACE_BATCHES, self.device)
            self._probe = _at_same_address(new, self._probe)
            self._follow_alpha()
            if self._take_trace is None:
                self._take_trace = self._runner.record(self._measure_trace)
            self._take_trace()
            return self._trace.clone()

    def _measure_trace(self) -> None:
        assert self._probe is not None
        each = [
            self.gradients(DrawBlock(*(p[k] for p in self._probe))) for k in range(TRACE_BATCHES)
        ]
        mean = torch.stack(each).mean(0)
        squares = [(g - mean).square().sum(2, dtype=torch.float64) for g in each]
        self._trace.copy_(torch.stack(squares).sum(0) / (TRACE_BATCHES - 1))

    def samples(self, e: Sample) -> Tensor:
        """Samples of the moving averages from the same noise, (seeds, betas, n, ...).

        By the experiment's sampler, in one step by default.
        """
        self.wait()
        return self.members.samples(self.ema, e)

    def wait(self) -> None:
        """Waits for the device."""
        self._runner.wait()

    def _state(self) -> dict[str, Tensor]:
        adam = [self._adam.state[p] for p in self.net.values()]
        names = list(self.net)
        return {
            **{f"net.{name}": w for name, w in self.net.items()},
            **{f"ema.{name}": w for name, w in self.ema.items()},
            **{f"first.{n}": s["exp_avg"] for n, s in zip(names, adam, strict=True)},
            **{f"second.{n}": s["exp_avg_sq"] for n, s in zip(names, adam, strict=True)},
            "lost": self.lost,
        }

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._state().items():
                tensor.copy_(tensors[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; waits for the device."""
        self.wait()
        tensors = {name: t.detach() for name, t in self._state().items()}
        return {"step": self.step, "tensors": tensors, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        about = {"betas": list(self.betas), "seeds": list(self.seeds), "block": BLOCK}
        about |= {"draws": self.draws, "device": self.device.type}  # a GPU draws other numbers
        return about | {"experiment": self.experiment.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was taken; ValueError if that was another ensemble's."""
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise ValueError(f"{name} must be {mine} in the saved ensemble; got {state[name]}")
        with self._runner():
            self._restore(state["tensors"])
            self._set_step(state["step"])


def train_together(ensembles: Sequence[Ensemble], steps: int) -> None:
    """Takes ``steps`` steps of each in turn, so that their work overlaps on a GPU, then waits."""
    for _ in range(steps):
        for ensemble in ensembles:
            ensemble.advance()
    for ensemble in ensembles:
        ensemble.wait()


def _keep_freed_memory() -> None:
    """Lets glibc keep memory that a step on the CPU frees for the next step.

    Otherwise glibc returns it to the system, and clearing new pages takes a fifth of a step.
    Freeing a block of almost 32 MiB raises glibc's thresholds to their maximum (mallopt(3),
    M_MMAP_THRESHOLD).
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _at_same_address(new: DrawBlock, old: DrawBlock | None) -> DrawBlock:
    """Copies the new draws to the addresses of the old ones, which a recorded program reads."""
    if old is None:
        return new
    for target, part in zip(old, new, strict=True):
        target[: len(part)].copy_(part)
    return old
