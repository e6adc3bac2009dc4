"""Steps as CUDA graphs: only on a GPU."""

import pytest
import torch

from vamf.distributed import Workers
from vamf.presets import PRESETS
from vamf.training import capture
from vamf.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

SMALL = {"model.channels": 16, "model.dropout": 0.1, "batch": 8, "proxy": "ema"}
FAST = {"compute.compile": True, "compute.precision": "bfloat16"}


def trained(monkeypatch, warm_up, steps=8, **over):
    monkeypatch.setattr(capture, "WARM_UP", warm_up)
    experiment = PRESETS["digits"].override(SMALL | FAST | over)
    device = torch.device("cuda")
    own = Trainer(experiment, experiment.data.load("train").to(device), Workers(device=device))
    for _ in range(steps):
        own.train_step()
    return own


@pytest.mark.parametrize("over", [{}, {"beta.end": 0.0, "beta.shape": "linear"}])
def test_captured_steps_are_those_that_are_not(monkeypatch, over):
    """To the bit, dropout and a beta that moves included."""
    graphs, usual = (trained(monkeypatch, n, **over) for n in (3, 99))
    for a, b in zip(graphs.net.parameters(), usual.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert graphs.collect() == usual.collect()


def test_nothing_in_a_step_waits_for_the_device(monkeypatch):
    own = trained(monkeypatch, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        own.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
