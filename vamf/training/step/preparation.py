"""Compiles and tests training steps before the first of them."""

import json

import torch

from vamf.cpus import usable
from vamf.flow.schedules import BetaSchedule
from vamf.models.fast.convolutions import undecided
from vamf.models.fast.fused import TRITON
from vamf.training.step.memory import FEW, choose_micro_batches
from vamf.training.step.precision_check import self_test
from vamf.training.step.trainer import Trainer

MOST = 16
"""Threads that compile; more would wait for each other."""
SETTINGS = (
    "model", "times", "loss", "proxy", "reference", "head", "guidance", "augment", "compute",
    "batch",
)  # fmt: skip
"""The settings of an experiment on which a step's kernels and their accuracy depend."""

_prepared: set[str] = set()
"""The kinds of steps that this process has compiled and tested."""


def prepare_steps(trainer: Trainer) -> None:
    """Compiles kernels, chooses micro-batches if asked to, and tests the numbers of all stages.

    A process that has trained such steps before, as a search's has, only chooses. Changes no
    weights and no random numbers of training. Raises ValueError if the numbers are wrong.
    """
    stages = trainer.experiment.stages
    for stage in (*range(len(stages), trainer.stage, -1), trainer.stage):  # ends where it began
        trainer.begin(stage)
        kind = kind_of_step(trainer)
        new = kind not in _prepared
        if new:
            compile_kernels(trainer)
        choose_micro_batches(trainer)
        if new:
            self_test(trainer)
        if kind is not None:
            _prepared.add(kind)


def kind_of_step(trainer: Trainer) -> str | None:
    """All that a step's kernels and their accuracy depend on, other than numbers in tensors.

    None with code of the user's own, which may change while this process runs.
    """
    own, workers = trainer.objective.experiment, trainer.workers
    if not (_is_ours(own.model) and _is_ours(own.loss)):
        return None
    settings, without_proxy = own.to_dict(), own.beta == BetaSchedule(value=0.0)
    given = [trainer.dataset.shape, workers.world, str(workers.device), without_proxy]
    return json.dumps([*given, *(settings[name] for name in SETTINGS)])


def compile_kernels(trainer: Trainer) -> None:
    """Compiles what a trainer's next step needs on its GPU, or loads what was compiled before.

    Several kernels at a time: within a step they would be compiled one after another.
    """
    device = trainer.workers.device
    ours = _is_ours(trainer.objective.experiment.loss)  # another may refuse arbitrary values
    if not (trainer.objective.execution.capture and TRITON and ours):
        return
    from vamf.models.fast.kernels.launch import compiling_ahead

    threads = min(max(usable() // trainer.workers.world, 1), MOST)
    with torch.random.fork_rng([device]), undecided(), compiling_ahead(threads, device):
        _passes(trainer)


def _is_ours(part: object) -> bool:
    return type(part).__module__.startswith("vamf.")


def _passes(trainer: Trainer) -> None:
    """The forward and backward pass, without and with dropout; their values are arbitrary."""
    inputs, net = trainer.objective.inputs(trainer.step), trainer.net
    chosen = trainer.experiment.compute.accumulate != "auto"
    parts = trainer.micro_batches if chosen else max(len(inputs.draws.x) // FEW, 1)
    part = inputs.micro_batch(parts - 1, parts)  # if few have r < t, the first may have none
    for moved in trainer.objective.programs():
        for training in (False, True):  # the self-test has no dropout
            net.train(training)
            with trainer.execution.step():
                trainer.objective.terms(part._replace(moved=moved)).loss.backward()
            trainer.optimiser.zero_grad()
