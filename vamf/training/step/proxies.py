"""Builds the proxy v_hat of the marginal velocity."""

import torch
from torch import nn

from vamf.experiment import Experiment
from vamf.flow.oracle import BatchProxy
from vamf.flow.tangents import boundary_velocity
from vamf.training.checkpoints.checkpoint import find_checkpoint
from vamf.training.step.networks import build_networks
from vamf.training.step.precision import head_in_precision, in_precision
from vamf.typing import Label, Sample, Time, Velocity


def build_proxy(
    experiment: Experiment, net: nn.Module, ema: nn.Module, device: torch.device
) -> Velocity:
    """The proxy that the experiment names.

    Raises ValueError if the data have no closed form, or if the reference checkpoint is unusable.
    """
    match experiment.proxy:
        case "online":
            return boundary_velocity(in_precision(net, experiment.compute))
        case "head":
            return head_velocity(head_in_precision(net, experiment.compute))
        case "batch":
            return BatchProxy()
        case "oracle":
            return experiment.data.velocity()
        case "reference":
            return reference_velocity(experiment, device)
    return boundary_velocity(in_precision(ema, experiment.compute))


def head_velocity(head: Velocity) -> Velocity:
    """The proxy sg[v(z, t)] of a network's own velocity head (arXiv 2512.02012).

    Labels after t are passed on to a conditional network.
    """

    def velocity(z: Sample, t: Time, *y: Label) -> Sample:
        with torch.no_grad():
            return head(z, t, *y)

    return velocity


def reference_velocity(experiment: Experiment, device: torch.device) -> Velocity:
    """The frozen velocity u(z, t, t) of another checkpoint's moving average (arXiv 2605.09235).

    Raises ValueError if there is none, if it was trained on other data, or if it is a DDPM.
    """
    assert experiment.reference is not None
    checkpoint = find_checkpoint(experiment.reference)
    other = checkpoint.experiment()
    if any(name.startswith("data.") for name in experiment.differences(other)):
        raise ValueError(
            f"the reference {checkpoint.path} was trained on other data: "
            f"{other.data} there, {experiment.data} here"
        )
    if not other.loss.learns_velocity:
        raise ValueError(
            f"the reference must have learnt a velocity; {checkpoint.path} is a DDPM, which "
            "predicts noise"
        )
    _, ema = build_networks(other, other.data.shape, device)
    ema.load_state_dict(checkpoint.load(device)["ema"])
    return boundary_velocity(in_precision(ema, experiment.compute))
