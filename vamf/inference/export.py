"""Exports a trained network and its experiment to one safetensors file."""

import json
from pathlib import Path

import torch

from vamf.files import written_aside
from vamf.training.checkpoints.checkpoint import find_checkpoint
from vamf.training.checkpoints.exported_file import BETA, NETWORK, SUFFIX, with_prefix


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
    weights = with_prefix("module.", state["ema"])
    plain = torch.contiguous_format  # whatever layout was fast in training
    tensors = {NETWORK + name: value.clone(memory_format=plain) for name, value in weights.items()}
    tensors |= {BETA + name: value.clone() for name, value in state.get("beta", {}).items()}
    about = {"experiment": json.dumps(found.experiment().to_dict()), "step": str(found.step)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(out) as aside:
        save_file(tensors, aside, metadata={"format": "pt", **about})
    return found.step
