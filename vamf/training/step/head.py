"""The loss of a network's velocity head."""

from functools import partial

from torch import Tensor, nn

from vamf.experiment import Experiment
from vamf.flow.guidance import Labels, velocity_with_labels, with_augment_labels, with_labels
from vamf.flow.objectives.meanflow import path_point
from vamf.flow.objectives.terms import Draws, squared_norm
from vamf.training.step.precision import head_in_precision
from vamf.typing import Sample


def head_loss(
    experiment: Experiment,
    net: nn.Module,
    draws: Draws,
    labels: Labels | None,
    augment_labels: Tensor | None,
    velocity: Sample | None,
) -> Tensor:
    """Flow matching of the velocity head, weighted as the loss (arXiv 2512.02012).

    Its target is v_cond, or the guided ``velocity``: `loss_v` of github.com/Lyy-iiis/imeanflow,
    which takes the head of the network at the step's r, as with ``every_r``. There, and here within
    ``sharing_passes``, it comes out of one pass with u; at r = t it is a pass of its own.
    """
    settings, rule = experiment.head, experiment.loss
    head = head_in_precision(net, experiment.compute)
    if settings.every_r:
        head = partial(head, r=draws.r)
    if augment_labels is not None:
        head = with_augment_labels(head, augment_labels, times=1)
    if labels is not None:
        told = with_labels if settings.every_r else velocity_with_labels
        head = told(head, labels.y, labels.kappa, labels.interval)
    z, target = path_point(draws, velocity)
    error = squared_norm(head(z, draws.t) - target)
    return settings.weight * (rule.weight(error) * error).mean()
