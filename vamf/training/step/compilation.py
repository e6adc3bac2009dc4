"""Compiles the kernels of a training step, several at a time, before the first step."""

import torch

from vamf.cpus import usable
from vamf.models.fast.fused import TRITON
from vamf.training.step.trainer import Trainer

MOST = 16
"""Threads that compile; more would wait for each other."""
FEW = 4
"""Samples of a pass whose micro-batches are not chosen yet."""


def compile_kernels(trainer: Trainer) -> None:
    """Compiles what a trainer's next step needs on its GPU, or loads what was compiled before.

    Within a step its kernels would be compiled one after another. Changes no weights and no random
    numbers of training.
    """
    device = trainer.workers.device
    if not (trainer.objective.execution.capture and TRITON):
        return
    from vamf.models.fast.kernels.launch import compiling_ahead

    threads = min(max(usable() // trainer.workers.world, 1), MOST)
    with torch.random.fork_rng([device]), compiling_ahead(threads, device):
        _passes(trainer)


def _passes(trainer: Trainer) -> None:
    """The forward and backward pass, without and with dropout; their values are arbitrary."""
    inputs, net = trainer.objective.inputs(trainer.step), trainer.net
    chosen = trainer.experiment.compute.accumulate != "auto"
    parts = trainer.micro_batches if chosen else max(len(inputs.draws.x) // FEW, 1)
    part = inputs.micro_batch(0, parts)
    for training in (False, True):  # the self-test has no dropout
        net.train(training)
        with trainer.execution.step():
            trainer.objective.terms(part).loss.backward()
        trainer.optimiser.zero_grad()
