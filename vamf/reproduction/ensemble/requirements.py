"""What an experiment must be to be trained as one program."""

from collections.abc import Sequence
from dataclasses import replace

from vamf.data.source import PointSource
from vamf.experiment import Experiment
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.semigroup import SemigroupLoss
from vamf.flow.objectives.terminal_velocity import TerminalVelocityLoss
from vamf.flow.schedules import BetaSchedule
from vamf.models.mlp import MLPConfig
from vamf.reproduction.ensemble.draw_blocks import equal_count

LOSSES = (MeanFlowLoss, AlphaFlowLoss, SemigroupLoss, TerminalVelocityLoss)
PROXIES = ("ema", "online", "batch")


def check(experiment: Experiment, betas: Sequence[float], seeds: Sequence[int]) -> None:
    """Raises ValueError for an experiment that cannot be trained as one program."""
    data, model = experiment.data, experiment.model
    if not (isinstance(data, PointSource) and isinstance(model, MLPConfig)):
        raise ValueError(
            "an ensemble needs points and an MLPConfig; "
            f"got {type(data).__name__} and {type(model).__name__}"
        )
    _check_loss(experiment)
    if experiment.stages:
        raise ValueError(f"an ensemble has one objective: no stages; got {experiment.stages}")
    if experiment.ema_every != 1:
        raise ValueError(f"an ensemble needs ema_every = 1; got {experiment.ema_every}")
    for name, values in (("betas", betas), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be at least one, each once; got {list(values)}")
    for beta in betas:  # ValueError outside [0, 1], and if the loss mixes no tangent
        replace(experiment, beta=BetaSchedule(value=beta))
    equal_count(experiment)


def _check_loss(experiment: Experiment) -> None:
    loss, proxy = experiment.loss, experiment.proxy
    if type(loss) not in LOSSES:
        known = ", ".join(known.__name__ for known in LOSSES)
        raise ValueError(f"an ensemble's loss must be one of {known}; got {type(loss).__name__}")
    if proxy not in PROXIES:
        raise ValueError(f"an ensemble's proxy must be one of {', '.join(PROXIES)}; got {proxy}")
    if loss.probes:
        raise ValueError(
            "an ensemble draws no random signs: loss.trace must be null; "
            f"got {loss.probes} for each sample"
        )
    if isinstance(loss, MeanFlowLoss) and loss.tangent_warmup:
        raise ValueError(
            "an ensemble has no warm-up of the tangent: loss.tangent_warmup must be 0; "
            f"got {loss.tangent_warmup}"
        )
