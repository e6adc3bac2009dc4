"""Whoever lets runs share a GPU hears how they can compute side by side."""

import pytest
import torch

from vamf.cluster.ray.shared_gpu import advise


@pytest.mark.parametrize(
    ("gpus", "here", "service", "advised"),
    [
        (0.25, 1, False, True),
        (0.25, 1, True, False),
        (1.0, 1, False, False),  # runs of their own GPUs
        (0.0, 1, False, False),  # on the CPU
        (0.25, 0, False, False),  # the GPUs are other nodes'
    ],
)
def test_runs_that_take_turns_are_told(gpus, here, service, advised, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    if service:
        (tmp_path / "control").touch()
    advise(gpus)
    said = "".join(capfd.readouterr())
    assert ("--scaling.gpus 0.25" in said and "nvidia-cuda-mps-control -d" in said) == advised
    assert bool(said) == advised
