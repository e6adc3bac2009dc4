"""Functions of tensors as CUDA graphs, which need a GPU."""

from functools import cache

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vamf.benchmarks.step_time import trainer_of
from vamf.compat.torch import leaves
from vamf.diagnostics.variance import evaluation_draws, sample_losses
from vamf.experiment_settings import Compute
from vamf.flow.tangents import boundary_velocity
from vamf.models.fast import reference_ops
from vamf.presets import PRESETS
from vamf.training import evaluation
from vamf.training.step.replayed import Replayed, replayed

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
COMPILED = Compute(compile=True)


def test_only_compiled_functions_on_a_gpu_are_replayed():
    net = nn.Linear(2, 2)
    assert replayed(net, COMPILED, torch.device("cpu")) is net
    assert replayed(net, Compute(compile=False), torch.device("cuda")) is net


class FromHost(TorchDispatchMode):
    """Counts the copies of numbers from the host, which a graph cannot wait for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        there = {a.device.type for a in leaves((args, result)) if isinstance(a, torch.Tensor)}
        self.count += func is torch.ops.aten._to_copy.default and there == {"cpu", "cuda"}
        return result


@pytest.mark.parametrize("over", [{}, {"model.kind": "DiTConfig", "model.patch": 2}], ids=str)
def test_what_an_evaluation_replays_copies_nothing_from_the_host(over, monkeypatch):
    """Of a GPU that fake tensors stand for. A first call may: it is not captured."""
    small = {"model.channels": 16} if not over else {"model.width": 16, "model.heads": 2}
    experiment = PRESETS["digits"].override(small | over)
    monkeypatch.setattr(reference_ops, "_filter", cache(reference_ops._filter.__wrapped__))
    with FakeTensorMode(), torch.device("cuda"):
        net = experiment.model.build((1, 8, 8))
        x, e = torch.randn(2, 4, 1, 8, 8)
        draws, own = evaluation_draws(x, e, 0.5), boundary_velocity(net)
        with torch.no_grad():
            for _ in range(2):
                with FromHost() as copies:
                    net(e, draws.r, draws.t)
                    sample_losses(net, draws, 0.5, own)
                    torch.tensor([1.0, 2.0])
        assert copies.count == 1  # the last line's


@on_a_gpu
def test_a_replayed_function_has_the_values_of_the_function():
    """For inputs of two shapes, an input that is a number, and weights that change in place."""
    device, calls = torch.device("cuda"), []
    net = nn.Linear(3, 2).to(device)

    def function(pair, scale):
        calls.append(scale)
        return {"there": net(pair[0]) * scale, "back": -pair[1]}

    fast, found, expected = replayed(function, COMPILED, device), [], []
    with torch.inference_mode():
        for step in range(5):
            for n, scale in ((4, 1.0), (5, 1.0), (4, 2.0)):
                pair = (torch.randn(n, 3, device=device), torch.randn(n, device=device))
                found.append(fast(pair, scale))
                expected.append({"there": net(pair[0]) * scale, "back": -pair[1]})
            net.weight.add_(step)
    assert len(calls) == 6  # of each of three kinds, the first call and the capture
    for a, b in zip(found, expected, strict=True):  # those of earlier calls are as they were
        assert torch.equal(a["there"], b["there"]) and torch.equal(a["back"], b["back"])


@on_a_gpu
def test_a_function_that_waits_for_the_device_is_called():
    """And all else draws its random numbers as before, other graphs included."""
    device, drops = torch.device("cuda"), nn.Dropout(0.5)

    def function(x):
        return x * drops(x).sum().item()

    def masks(net):
        torch.manual_seed(3)
        return net(torch.ones(1000, device=device))

    stream, other = torch.cuda.current_stream(), Replayed(drops, device, warm_up=1)
    expected, _, _ = masks(drops), masks(other), masks(other).clone()
    own, x = Replayed(function, device, warm_up=1), torch.arange(3.0, device=device)
    own(x)
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph"):
        own(x)
    drops.eval()
    assert own(x + 1).tolist() == [6, 12, 18]
    drops.train()
    assert torch.cuda.current_stream() == stream
    assert torch.equal(masks(drops), expected)
    for _ in range(3):
        assert torch.equal(masks(other), expected)


EVALUATED = [
    {},
    {"evaluation.sampler": "heun", "evaluation.sampling_steps": 3},
    {"proxy": "batch", "beta.value": 0.5},
    {"loss.kind": "SemigroupLoss", "beta.value": 0.0},
    {"beta.kind": "BetaOfTime", "beta.at_half": 0.9},
    {"model.classes": 10, "model.guided": True, "guidance.max_scale": 4.0, "proxy": "head"}
    | {"model.velocity_head": True},
]


@on_a_gpu
@pytest.mark.filterwarnings("error:.*cannot be captured")
@pytest.mark.parametrize("over", EVALUATED, ids=str)
def test_an_evaluation_with_graphs_is_that_without(monkeypatch, over):
    """Dropout included: its masks are drawn anew at each replay."""
    small = {"model.channels": 16, "model.dropout": 0.1, "batch": 16, "compute.compile": True}
    small |= {"evaluation.distance.samples": 1000, "evaluation.variance_samples": 32}
    own = trainer_of(PRESETS["digits"].override(small | over), torch.device("cuda"))
    for parameter in (*own.net.parameters(), *own.ema.parameters()):  # its last layer begins at 0
        nn.init.normal_(parameter, std=0.05)
    graphs = evaluation.evaluate(own)
    monkeypatch.setattr(evaluation, "replayed", lambda function, *_: function)
    without = evaluation.evaluate(own)
    assert [*graphs] == [*without]
    for name, (value, error) in graphs.items():
        assert (value, error) == pytest.approx(without[name], rel=1e-4), name
    assert without["eval/gradient_variance"].value > 0
