"""What an objective asks of the other settings of an experiment."""

from vamf.diagnostics.adaptive import AdaptiveBeta
from vamf.diagnostics.probe import Probe
from vamf.experiment_settings import Compute, Evaluation
from vamf.flow.guidance import Guidance
from vamf.flow.objectives.ddpm import DDPM
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.semigroup import SemigroupLoss
from vamf.flow.objectives.terminal_velocity import TerminalVelocityLoss
from vamf.flow.objectives.terms import Moving, ObjectiveRule
from vamf.flow.schedules import BetaOfTime, BetaSchedule
from vamf.flow.times import TimeDistribution, UniformTimes


def check_objective(
    loss: ObjectiveRule,
    *,
    beta: BetaSchedule | BetaOfTime | AdaptiveBeta,
    times: TimeDistribution,
    guidance: Guidance | None,
    probe: Probe | None,
    proxy: str,
    compute: Compute,
    evaluation: Evaluation,
) -> None:
    """Raises ValueError if an objective cannot honour a setting."""
    denoises = evaluation.sampler in ("ancestral", "ddim")
    if denoises != isinstance(loss, DDPM):
        raise ValueError(
            "a DDPM and the samplers ancestral and ddim go together; "
            f"got {type(loss).__name__} and {evaluation.sampler}"
        )
    if isinstance(loss, DDPM):
        _check_ddpm(loss, beta, times, guidance, probe, proxy, evaluation)
    if compute.compile and loss.moves and not isinstance(loss, Moving):
        raise ValueError(
            f"{type(loss).__name__} cannot be compiled where its program changes at every step; "
            f"use compute.compile false; got {loss}"
        )
    if loss.learns_velocity:
        _check_beta(loss, beta, probe)
    if isinstance(loss, MeanFlowLoss):
        _check_mean_flow(loss, guidance, compute)
    if isinstance(loss, SemigroupLoss) and times.prob_equal == 0:
        raise ValueError(
            "a SemigroupLoss needs times.prob_equal > 0, since data enter where r = t; got 0"
        )
    if isinstance(loss, TerminalVelocityLoss):
        _check_terminal_velocity(loss, guidance, compute)


def _check_ddpm(
    loss: DDPM,
    beta: BetaSchedule | BetaOfTime | AdaptiveBeta,
    times: TimeDistribution,
    guidance: Guidance | None,
    probe: Probe | None,
    proxy: str,
    evaluation: Evaluation,
) -> None:
    if times != UniformTimes(prob_equal=1.0):
        raise ValueError(f"a DDPM needs UniformTimes with prob_equal = 1; got {times}")
    if isinstance(beta, AdaptiveBeta):
        raise ValueError(f"a DDPM has no beta to adapt; got {beta}")
    if guidance or probe or proxy != "ema":
        raise ValueError(
            "a DDPM needs proxy ema, and neither guidance nor probe; "
            f"got {proxy}, {guidance} and {probe}"
        )
    levels, steps = loss.levels, evaluation.sampling_steps
    if evaluation.sampler == "ancestral" and steps != levels:
        raise ValueError(f"ancestral sampling takes all {levels} levels; got {steps} steps")
    if steps > levels:
        raise ValueError(f"DDIM takes 1 to {levels} steps; got {steps}")


def _check_beta(
    loss: ObjectiveRule, beta: BetaSchedule | BetaOfTime | AdaptiveBeta, probe: Probe | None
) -> None:
    if not loss.mixes_tangent and beta != BetaSchedule():
        raise ValueError(
            f"beta must be 0 for a {type(loss).__name__}, which has no tangent to mix; "
            f"got {beta.label}"
        )
    if not loss.has_landscape and (probe or isinstance(beta, AdaptiveBeta)):
        raise ValueError(
            f"a probe and an adaptive beta need a loss |u + (t - r) du/dt - v_cond|^2; got {loss}"
        )


def _check_mean_flow(loss: MeanFlowLoss, guidance: Guidance | None, compute: Compute) -> None:
    if loss.difference and compute.precision != "float32":
        raise ValueError(
            "a difference of u loses the digits that its precision has: loss.difference needs "
            f"compute.precision float32; got {compute.precision}"
        )
    if loss.gamma and guidance is not None and guidance.guides:
        raise ValueError(
            f"the proxy in the target would weaken guidance: loss.gamma must be 0; got {loss.gamma}"
        )


def _check_terminal_velocity(
    loss: TerminalVelocityLoss, guidance: Guidance | None, compute: Compute
) -> None:
    if compute.compile and not loss.stop_derivative:
        raise ValueError(
            "compute.compile carries tangents without a graph: a TerminalVelocityLoss needs "
            "loss.stop_derivative true, or compute.compile false"
        )
    if compute.checkpointing and not loss.stop_derivative:
        raise ValueError(
            "compute.checkpointing computes no graph of du/dr again: a TerminalVelocityLoss needs "
            "loss.stop_derivative true, or compute.checkpointing false"
        )
    if guidance is not None and guidance.guides and loss.boundary is not None:
        raise ValueError(
            "a guided velocity is that at time t: a TerminalVelocityLoss needs loss.boundary null "
            f"with guidance; got {loss.boundary}"
        )
