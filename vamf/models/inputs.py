"""What a network of a user's own must take."""

import inspect

import torch
from torch import nn

from vamf.models.config import NetworkConfig, takes_interval


def check_inputs(config: NetworkConfig, shape: tuple[int, ...], *, every_r: bool) -> None:
    """As ``require_inputs``, before the network takes memory.

    Passes over a network that cannot be built without memory.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            net = config.build(shape)
    except ValueError:
        raise
    except Exception:  # of a user's own code
        return
    require_inputs(net, config, every_r=every_r)


def require_inputs(net: nn.Module, config: NetworkConfig, *, every_r: bool) -> None:
    """Raises ValueError unless the network, and its velocity head, take what they are given.

    With ``every_r`` the head is given r, too.
    """
    told = ["y"] * (config.classes > 0) + ["kappa"] * config.guided
    whole = [*told, *["interval"] * takes_interval(config)]
    _require(net, "forward", ["z", "r", "t", *whole])
    if config.velocity_head:
        _require(net, "velocity", ["z", "t", *told])
        if every_r:
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
