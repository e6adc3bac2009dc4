"""The network of an experiment and its moving average."""

import copy
import inspect

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vamf.experiment import Experiment
from vamf.models.config import takes_interval
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
    require_inputs(net, experiment)
    net = net.to(device)
    return net, MovingAverage(net, experiment.ema**experiment.ema_every)


def require_inputs(net: nn.Module, experiment: Experiment) -> None:
    """Raises ValueError unless the network, and its velocity head, take what they are given."""
    model = experiment.model
    told = ["y"] * (model.classes > 0) + ["kappa"] * model.guided
    whole = [*told, *["interval"] * takes_interval(model)]
    _require(net, "forward", ["z", "r", "t", *whole])
    if model.velocity_head:
        _require(net, "velocity", ["z", "t", *told])
        if experiment.head.every_r:
            _require(net, "velocity", ["z", "t", *whole], "r")


def _require(net: nn.Module, method: str, inputs: list[str], *named: str) -> None:
    """Raises ValueError unless a method takes the inputs by place, and the ``named`` by name."""
    wanted = f"{method}({', '.join([*inputs, *(f'{name}={name}' for name in named)])})"
    of = f"the network {type(net).__qualname__}"
    if not callable(function := getattr(net, method, None)):
        raise ValueError(f"{of} must have a method {wanted}; it has no {method}")
    taken = inspect.signature(function)
    try:
        taken.bind(*inputs, **dict.fromkeys(named))
    except TypeError as error:
        why = " with head.every_r" if named else ""
        raise ValueError(f"{of} must take {wanted}{why}; got {method}{taken}: {error}") from None


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
