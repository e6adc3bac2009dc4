"""Reads exported files: a network's moving average and its experiment in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vamf.experiment import Experiment

SUFFIX = ".safetensors"

NETWORK, BETA = "network.", "beta."
"""Prefixes of the names of the weights, and of the state of an adaptive beta."""


def read_export(path: Path) -> tuple[Experiment, int, dict[str, Tensor], dict[str, Tensor]]:
    """Experiment, step, weights by name, and the state of an adaptive beta, if there is one.

    Raises ValueError if the file is missing or damaged, or was not written by ``export``.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no readable {SUFFIX} file: {error}") from None
    if not {"experiment", "step"} <= about.keys():
        raise ValueError(f"{path} must hold its experiment and step; got {sorted(about)}")
    experiment = Experiment.from_dict(json.loads(about["experiment"]))
    parts = with_prefix(NETWORK, tensors), with_prefix(BETA, tensors)
    return experiment, int(about["step"]), *parts


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix; the prefix is removed."""
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
