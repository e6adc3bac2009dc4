"""A trained network as one safetensors file that holds its experiment, for use elsewhere."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vamf.experiment import Experiment
from vamf.files import written_aside
from vamf.training.checkpoint import find_checkpoint

SUFFIX = ".safetensors"

NETWORK, BETA = "network.", "beta."
"""What the names of the weights, and of what an adaptive beta has learnt, begin with."""


def export(checkpoint: Path, out: Path) -> int:
    """Writes the moving average of a checkpoint, or of a run's best one; returns its step.

    The file is a few times smaller than the checkpoint, holds no code, and is read by
    ``inference.load`` and by every safetensors library. Raises ValueError if there is no usable
    checkpoint or the file would have another ending.
    """
    from safetensors.torch import save_file

    if out.suffix != SUFFIX:
        raise ValueError(f"an exported file must end in {SUFFIX}; got {out}")
    found = find_checkpoint(checkpoint)
    state = found.load()
    weights = _with_prefix("module.", state["ema"])
    plain = torch.contiguous_format  # whatever was fast in training
    tensors = {NETWORK + name: value.clone(memory_format=plain) for name, value in weights.items()}
    tensors |= {BETA + name: value.clone() for name, value in state.get("beta", {}).items()}
    about = {"experiment": json.dumps(found.experiment().to_dict()), "step": str(found.step)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(out) as aside:
        save_file(tensors, aside, metadata={"format": "pt", **about})
    return found.step


def read_export(path: Path) -> tuple[Experiment, int, dict[str, Tensor], dict[str, Tensor]]:
    """Experiment, step, weights by name, and what an adaptive beta has learnt, if one has.

    Raises ValueError for a file that is not there, is damaged, or that ``export`` did not write.
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
    """The tensors whose name begins so, without that beginning."""
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
