"""Loads a trained network from its checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel

from vamf.diagnostics.adaptive import AdaptiveBetaState
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.training.checkpoints.checkpoint import find_checkpoint
from vamf.training.checkpoints.exported_file import SUFFIX, read_export
from vamf.training.step.networks import build_networks
from vamf.training.step.objective import beta_at
from vamf.training.step.trainer import Trainer
from vamf.typing import BetaAt


class Trained(NamedTuple):
    """A checkpoint's moving average, with its experiment and origin."""

    experiment: Experiment
    ema: AveragedModel
    beta: BetaAt
    """beta at the checkpoint's step."""
    path: Path
    step: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return self.experiment.data.shape


def load(path: Path, device: torch.device) -> Trained:
    """Loads a checkpoint, the best one of a run's folder, or an exported file; needs no data.

    Raises ValueError if it is not usable.
    """
    return _exported(path, device) if path.suffix == SUFFIX else _saved(path, device)


def _saved(path: Path, device: torch.device) -> Trained:
    checkpoint = find_checkpoint(path)
    experiment = checkpoint.experiment()
    _, ema = build_networks(experiment, experiment.data.shape, device)
    state = checkpoint.load(device)
    ema.load_state_dict(state["ema"])
    adapted = AdaptiveBetaState(**state["beta"]) if "beta" in state else None
    beta = beta_at(experiment, checkpoint.step, adapted)
    return Trained(experiment, ema, beta, checkpoint.path, checkpoint.step)


def _exported(path: Path, device: torch.device) -> Trained:
    experiment, step, weights, adapted = read_export(path)
    _, ema = build_networks(experiment, experiment.data.shape, device)
    try:
        ema.module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit its own experiment: {reason}") from None
    learnt = {name: value.to(device) for name, value in adapted.items()}
    beta = beta_at(experiment, step, AdaptiveBetaState(**learnt) if learnt else None)
    return Trained(experiment, ema, beta, path, step)


def load_trainer(path: Path, device: torch.device, changes: Mapping[str, Any]) -> Trainer:
    """A trainer in a checkpoint's state, with changes to its experiment by dotted name.

    Changes that are None are ignored. Raises ValueError if the checkpoint is not usable, or lacks
    what the changes need.
    """
    checkpoint = find_checkpoint(path)
    changes = {name: value for name, value in changes.items() if value is not None}
    whole = {"compute.accumulate": 1}  # another batch may not divide as the run's does
    experiment = checkpoint.experiment().override(whole | changes)
    trainer = Trainer(experiment, experiment.data.load("train"), Workers(device=device))
    try:
        trainer.load_state_dict(checkpoint.load(device))
    except RuntimeError as error:  # another network, for instance one without a velocity head
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint.path} does not fit {changes}: {reason}") from None
    return trainer
