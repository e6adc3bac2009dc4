"""Exports a trained network and its experiment to one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vamf.experiment import Experiment
from vamf.files import written_aside
from vamf.training.checkpoints.checkpoint import find_checkpoint

SUFFIX = ".safetensors"

NETWORK, BETA = "network.", "beta."
"""Prefixes of the names of the weights, and of the state of an adaptive beta."""


def export(checkpoint: Path, out: Path) -> int:
    """Writes the moving average of a checkpoint, or of a run's best one; returns its step.

    The file is a few times smaller than the checkpoint and contains no code; ``inference.load`` and
    every safetensors library read it. Raises ValueError if there is no usable checkpoint, or if
    ``out`` has another file name extension.
    """
    from safetensors.torch import save_file

    if out.suffix != SUFFIX:
        raise ValueError(f"an exported file must end in {SUFFIX}; got {out}")
    found = find_checkpoint(checkpoint)
    state = found.load()
    weights = _with_prefix("module.", state["ema"])
    plain = torch.contiguous_format  # whatever layout was fast in training
    tensors = {NETWORK + name: value.clone(memory_format=plain) for name, value in weights.items()}
    tensors |= {BETA + name: value.clone() for name, value in state.get("beta", {}).items()}
    about = {"experiment": json.dumps(found.experiment().to_dict()), "step": str(found.step)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(out) as aside:
        save_file(tensors, aside, metadata={"format": "pt", **about})
    return found.step


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
    parts = _with_prefix(NETWORK, tensors), _with_prefix(BETA, tensors)
    return experiment, int(about["step"]), *parts


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix; the prefix is removed."""
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
