"""The interface of the networks that an experiment can name."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class NetworkConfig(Protocol):
    """A choice of a network: a frozen dataclass whose fields are its hyper-parameters.

    A class that inherits from this one takes no labels and has one output, unless it says
    otherwise.
    """

    @property
    def classes(self) -> int:
        """Classes of the labels that the network is conditioned on; 0 for none."""
        return 0

    @property
    def guided(self) -> bool:
        """Whether the network takes a sample's guidance scale; needs ``classes``.

        A configuration may also have ``guided_interval``: whether it takes the guided times.
        """
        return False

    @property
    def velocity_head(self) -> bool:
        """Whether the network has a method ``velocity``, for the proxy ``head``.

        It computes v(z, t), with ``classes`` v(z, t, y), and so on as ``build`` says; with the
        setting head.every_r it also takes the time r by its name.
        """
        return False

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        """The network for samples of ``shape``, with random weights from torch's own generator.

        It computes u(z, r, t), or u(z, r, t, y) with ``classes``, u(z, r, t, y, kappa) if
        ``guided``, and u(z, r, t, y, kappa, interval) with ``guided_interval``: z and the result
        (batch, *shape), r and t (batch,) in [0, 1], labels y (batch,) with ``classes`` for no
        class, kappa = 1 - 1 / scale (batch,), interval (batch, 2). What follows t may be left out:
        no class, kappa = 0, the interval [0, 1]. ``torch.func.jvp`` must differentiate it in z, r
        and t. Raises ValueError for a shape that it does not take.
        """
        ...


def takes_interval(config: NetworkConfig) -> bool:
    """Whether the network takes the interval of guided times as input."""
    return bool(getattr(config, "guided_interval", False))
