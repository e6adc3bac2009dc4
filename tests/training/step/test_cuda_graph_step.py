"""Steps as CUDA graphs; some properties are tested without a GPU."""

import pytest
import torch
from helpers.group import member
from helpers.latents import write_latents
from torch.nn.parallel import DistributedDataParallel

from vamf.benchmarks.step_time import trainer_of
from vamf.contiguous import memory_of
from vamf.distributed import Workers
from vamf.presets import PRESETS
from vamf.training.step import cuda_graph_step, trainer
from vamf.training.step.networks import as_sampled
from vamf.training.step.trainer import Trainer

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

SMALL = {"model.channels": 16, "model.dropout": 0.1, "batch": 8, "proxy": "ema"}
FAST = {"compute.compile": True, "compute.precision": "bfloat16"}
LATENTS = {
    **{"model.width": 16, "model.depth": 1, "model.heads": 2, "model.classes": 3, "batch": 8},
    **{"data.vae": "some/vae", "data.size": 4, "data.resolution": 8, "data.classes": 3},
}


def digits(**over):
    return PRESETS["digits"].override(SMALL | FAST | over)


def trained(monkeypatch, warm_up, experiment):
    monkeypatch.setattr(cuda_graph_step, "WARM_UP", warm_up)
    own = trainer_of(experiment, torch.device("cuda"))
    for _ in range(8):
        own.train_step()
    return own


class Usual:
    """Replaces a captured step by the same step without a graph."""

    def __init__(self, objective, share=1.0):
        self._objective, self._share = objective, share

    def __call__(self, inputs):
        terms = self._objective.terms(inputs)
        (terms.loss * self._share).backward()
        return terms


def halves(rank, folder, precision, parts):
    """One of two workers: three steps averaged by DistributedDataParallel, then as captured."""
    torch.set_num_threads(1)
    compute = {"compute.compile": True, "compute.precision": precision, "compute.accumulate": parts}
    experiment = PRESETS["digits"].override(SMALL | compute)
    with member(rank, folder):
        for name, captured in (("hooks", lambda *_: None), ("afterwards", Usual)):
            trainer.captured = captured
            data, workers = experiment.data.load("train"), Workers(rank, 2)
            own = Trainer(experiment, data, workers, DistributedDataParallel)
            for _ in range(3):
                own.train_step()
            if captured is Usual:
                gradients = [p.grad for p in own.net.parameters()]
                adjacent = precision == "bfloat16" or parts > 1
                assert (memory_of(gradients) is not None) == adjacent
            torch.save(own.state_dict(), folder / f"{name}{rank}.pt")


@pytest.mark.slow  # two processes that each import torch
@pytest.mark.parametrize(("precision", "parts"), [("float32", 2), ("bfloat16", 1)])
def test_gradients_of_captured_steps_are_averaged(tmp_path, precision, parts):
    """To the bit: a half of each is exact. Those of rounded weights are not copied for it."""
    torch.multiprocessing.spawn(halves, (tmp_path, precision, parts), nprocs=2)
    names = ("hooks0", "hooks1", "afterwards0", "afterwards1")
    first, *others = (torch.load(tmp_path / f"{name}.pt")["net"] for name in names)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first.values(), other.values(), strict=True))


IMF = {
    **{"model.classes": 10, "model.guided": True, "model.guided_interval": True},
    **{"model.velocity_head": True, "proxy": "head", "head.every_r": True, "beta.value": 1.0},
    **{"guidance.max_scale": 8.0, "guidance.random_interval": True},
}
"""Improved Mean Flows."""

OTHERS = [
    {"loss.kind": "SemigroupLoss", "beta.value": 0.0},
    {"loss.kind": "TerminalVelocityLoss", "loss.stop_derivative": True, "beta.value": 0.0},
    {"loss.gamma": 0.5},
    {"proxy": "batch"},
    {"loss.alpha.kind": "AlphaSchedule", "loss.alpha.value": 0.3},
    {"loss.tangent_warmup": 0.5, "steps": 40},
    IMF,
]
"""Other objectives and proxies that the fast path takes."""


@on_a_gpu
@pytest.mark.parametrize("over", [{}, {"beta.end": 0.0, "beta.shape": "linear"}, *OTHERS], ids=str)
def test_captured_steps_are_those_that_are_not(monkeypatch, over):
    """To the bit, dropout and a beta that moves included."""
    graphs, usual = (trained(monkeypatch, n, digits(**over)) for n in (3, 99))
    for a, b in zip(graphs.net.parameters(), usual.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert graphs.collect() == usual.collect()


def on_latents(folder):
    write_latents(folder)
    return PRESETS["imagenet_dit_b4"].override(LATENTS | {"data.root": str(folder)})


@on_a_gpu
@pytest.mark.parametrize("over", [{}, *OTHERS, None], ids=str)
def test_nothing_in_a_step_waits_for_the_device(monkeypatch, tmp_path, over):
    """On digits on the GPU; None: latents on the disk."""
    experiment = on_latents(tmp_path / "latents") if over is None else digits(**over)
    own = trained(monkeypatch, 3, experiment)
    torch.cuda.set_sync_debug_mode("error")
    try:
        own.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
def test_what_is_sampled_from_has_the_same_weights_without_channels_last():
    own = trainer_of(digits(), torch.device("cuda"))
    copy = as_sampled(own.ema)
    pairs = list(zip(own.ema.parameters(), copy.parameters(), strict=True))
    assert all(torch.equal(a, b) and b.is_contiguous() for a, b in pairs)
    assert not all(a.is_contiguous() for a, _ in pairs) and as_sampled(copy) is copy
