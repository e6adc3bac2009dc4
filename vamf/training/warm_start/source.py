"""Reads the weights that a run starts from, and checks that they fit its experiment."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vamf.experiment import Experiment
from vamf.models.config import NetworkConfig
from vamf.models.weight_transfer import OPTIONAL, PLACES
from vamf.run_layout import STATE
from vamf.store import Store
from vamf.training.checkpoints.checkpoint import find_checkpoint
from vamf.training.checkpoints.exported_file import SUFFIX, read_export, with_prefix
from vamf.training.warm_start.py_meanflow import read_py_meanflow


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained network: the moving average of its weights."""

    path: Path
    """Its checkpoint or file."""
    described: str
    """What was read, for notes."""
    model: NetworkConfig
    shape: tuple[int, ...]
    """The shape of a sample."""
    weights: dict[str, Tensor]
    """The weights by name, on the CPU."""
    equal_times: bool
    """Whether it was trained at r = t only, where u is the velocity."""
    learns_velocity: bool
    """False of a DDPM, which predicts noise."""

    def require_fits(self, experiment: Experiment) -> None:
        """Raises ValueError, in one line, unless ``experiment`` can start from these weights."""
        here, shape = experiment.model, experiment.data.shape
        if differ := _differences(self.model, here):
            raise ValueError(
                f"init must be of the same network; {self.path} differs in {', '.join(differ)}"
            )
        if self.shape != shape:
            raise ValueError(
                "init must be of samples of the same shape; "
                f"{self.path} is of {self.shape} and the data here are of {shape}"
            )
        if self.learns_velocity != experiment.loss.learns_velocity:
            raise ValueError(
                "init must predict the same: a DDPM predicts noise, all others a velocity; "
                f"{self.path} {_predicts(self.learns_velocity)}, and this run "
                f"{_predicts(experiment.loss.learns_velocity)}"
            )


def _predicts(velocity: bool) -> str:
    return f"predicts {'a velocity' if velocity else 'noise'}"


def _differences(there: Any, here: Any) -> list[str]:
    """The fields in which two configurations differ and must not."""
    if type(there) is not type(here):
        return [f"model: {there} there, {here} here"]
    optional = OPTIONAL if type(here) in PLACES else ()
    pairs = {f.name: (getattr(there, f.name), getattr(here, f.name)) for f in fields(here)}
    return [
        f"model.{name}: {before} there, {now} here"
        for name, (before, now) in pairs.items()
        if before != now and name not in optional
    ]


def read_source(path: Path, average: str | None = None) -> Source:
    """The network at ``path``: a checkpoint, a run's best one, an export, or py-meanflow's file.

    ``average`` chooses a network of the last kind. Raises ValueError, in one line, for what cannot
    be used.
    """
    path = path.parent if path.name == STATE else path
    peer = Store.of(str(path)) is None and path.is_file() and path.suffix != SUFFIX
    if peer:
        return _of_peer(path, average)
    if average is not None:
        raise ValueError(
            "init_average chooses among the moving averages of a py-meanflow checkpoint, and vamf "
            f"saves one; got {average!r} for {path}"
        )
    if path.suffix == SUFFIX:
        experiment, step, weights, _ = read_export(path)
        return _own(path, experiment, step, weights)
    checkpoint = find_checkpoint(path)
    weights = with_prefix("module.", checkpoint.load()["ema"])
    return _own(checkpoint.path, checkpoint.experiment(), checkpoint.step, weights)


def _own(path: Path, experiment: Experiment, step: int, weights: dict[str, Tensor]) -> Source:
    source = Source(
        path=path,
        described=f"the moving average of step {step} in {path}",
        model=experiment.model,
        shape=experiment.data.shape,
        weights=weights,
        equal_times=experiment.times.prob_equal == 1,
        learns_velocity=experiment.loss.learns_velocity,
    )
    return _loaded(source)


def _of_peer(path: Path, average: str | None) -> Source:
    found = read_py_meanflow(path, average)
    source = Source(
        path=path,
        described=f"{found.name or 'the network'} of py-meanflow in {path}",
        model=found.model,
        shape=found.shape,
        weights=found.weights,
        equal_times=found.equal_times,
        learns_velocity=True,
    )
    return _loaded(source)


def _loaded(source: Source) -> Source:
    """The same with the weights as its network takes them, also those of earlier versions."""
    bare: AbstractContextManager[Any] = (
        torch.device("meta") if type(source.model) in PLACES else nullcontext()
    )
    with torch.random.fork_rng(devices=[]), bare:  # with shapes only, if that is possible
        net = source.model.build(source.shape)
    try:
        net.load_state_dict(source.weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source.path} does not fit its own network: {reason}") from None
    return replace(source, weights={n: v.detach() for n, v in net.state_dict().items()})
