"""The network of an experiment and its moving average."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vamf.experiment import Experiment
from vamf.random import seed_of


def build_networks(
    experiment: Experiment, shape: tuple[int, ...], device: torch.device
) -> tuple[nn.Module, AveragedModel]:
    """The network with weights drawn from the experiment's seed, and its moving average."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(experiment.seed, "weights"))
        net = experiment.model.build(shape)
    net = net.to(device)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(experiment.ema))
    ema.requires_grad_(False).eval()
    ema.n_averaged.fill_(1)  # the average starts at the initial weights
    return net, ema
