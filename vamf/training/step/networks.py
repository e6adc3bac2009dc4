"""The network of an experiment and its moving average."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vamf.experiment import Experiment
from vamf.models.inputs import require_inputs
from vamf.rng import seed_of


def build_networks(
    experiment: Experiment, shape: tuple[int, ...], device: torch.device
) -> tuple[nn.Module, AveragedModel]:
    """The network with weights drawn from the experiment's seed, and its moving average.

    Raises ValueError if the network does not take what the experiment passes to it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(experiment.seed, "weights"))
        net = experiment.model.build(shape)
    require_inputs(net, experiment.model, every_r=experiment.head.every_r)
    net = net.to(device)
    return net, MovingAverage(net, experiment.ema**experiment.ema_every)


class MovingAverage(AveragedModel):
    """The exponential moving average of a network's weights, starting from the initial ones.

    ``decay`` is that of one update. The base class's update copies the count of averages to the
    device and waits for it; this one does not.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__(net, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.requires_grad_(False).eval()
        self.n_averaged.fill_(1)  # the initial weights

    def update_parameters(self, model: nn.Module) -> None:
        """Updates the average with the weights of ``model``; does not wait for the device."""
        assert self.multi_avg_fn is not None
        self.multi_avg_fn(tuple(self.parameters()), tuple(model.parameters()), self.n_averaged)
        self.n_averaged += 1


def as_sampled(net: nn.Module) -> nn.Module:
    """The network, or a copy with the same weights that samples faster.

    Sampling runs in float32. There, on a GPU, convolutions are a quarter faster without channels
    last, the layout in which compiled networks are trained.
    """
    if all(p.is_contiguous() or not p.is_cuda for p in net.parameters()):
        return net
    return copy.deepcopy(net).to(memory_format=torch.contiguous_format)
