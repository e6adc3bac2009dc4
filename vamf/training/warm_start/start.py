"""Starts the networks of a run from the weights that its experiment names."""

from dataclasses import replace

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vamf.experiment import Experiment
from vamf.models.weight_transfer import transferred
from vamf.store import Store
from vamf.training.warm_start.source import read_source


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with the checkpoint that its ``init`` stands for now; for the driver.

    So all workers, trials and attempts start alike, even if the source is a run that still trains.
    In an object store the address stays. Raises ValueError, in one line, if the source cannot be
    used.
    """
    if experiment.init is None:
        return experiment
    source = read_source(experiment.init, experiment.init_average)
    source.require_fits(experiment)
    stored = Store.of(str(experiment.init)) is not None
    return experiment if stored else replace(experiment, init=source.path)


def start_networks(experiment: Experiment, net: nn.Module, ema: AveragedModel) -> dict[str, str]:
    """Sets the weights and the moving average to those of ``init``; returns notes by name.

    Both start as the source's moving average, by which it samples. If the source was trained at r =
    t only, and this run is not, they start with u(z, r, t) = v(z, t) at every r (see
    ``models.weight_transfer``), unless ``init_independent_of_r`` is false. Raises ValueError, in
    one line, if the source cannot be used.
    """
    assert experiment.init is not None
    source = read_source(experiment.init, experiment.init_average)
    source.require_fits(experiment)
    fresh = {name: value.cpu() for name, value in net.state_dict().items()}
    only_equal = source.equal_times and experiment.times.prob_equal < 1
    without_gap = only_equal and experiment.init_independent_of_r
    weights, lines = transferred(
        source.weights, source.model, experiment.model, fresh, without_gap=without_gap
    )
    with torch.no_grad():
        net.load_state_dict(weights)
        ema.module.load_state_dict(weights)
    said = {"init": f"starts from {source.described}"}
    if only_equal and not without_gap:
        said["init.r"] = "the source was trained at r = t only; its embedding of t - r is kept"
    return said | {f"init.{name}": line for name, line in lines.items()}
