"""Every objective in an ensemble is the one that a single run trains by."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.single_runs import in_float64

from vamf.data.toys import Toy
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation, Optimiser
from vamf.flow.difference import Difference
from vamf.flow.objectives.meanflow import Anchor
from vamf.flow.samplers import euler, heun
from vamf.flow.tangents import boundary_velocity
from vamf.flow.times import UniformTimes
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.reproduction.ensemble.alpha_of_steps import AlphaOfSteps
from vamf.reproduction.ensemble.cuda_stream_runner import CudaStreamRunner
from vamf.reproduction.ensemble.ensemble import Ensemble
from vamf.reproduction.objectives import OBJECTIVES, changes
from vamf.training.step.trainer import Trainer

STEPS = 5
TINY = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(8,), embedding=4),
    times=UniformTimes(prob_equal=0.25),
    optim=Optimiser(lr=1e-2, warmup=3),
    ema=0.9,
    batch=8,
    steps=STEPS,
    evaluation=Evaluation(distance=SlicedWasserstein()),
)
SEEDS = (42, 0)


def named(objective, **settings):
    return TINY.override({**changes(TINY, objective), **settings})


def together(experiment, steps=STEPS, **options):
    own = Ensemble(experiment, [experiment.beta.value], SEEDS, **options)
    own.advance(steps)
    return own


VARIANTS = {
    "semigroup, middle": named("semigroup", **{"loss.split": "middle"}),
    "terminal velocity at t": named("terminal velocity, stopped", **{"loss.boundary": None}),
    "batch's velocity in the target": named("gamma 0.5, own velocity", proxy="batch"),
    "constant alpha": named("alpha-Flow", **{"loss.alpha.value": 0.4}),
    "difference": replace(TINY, loss=replace(TINY.loss, difference=Difference())),
    "anchor": replace(TINY, loss=replace(TINY.loss, anchor=Anchor(max_gap=0.1))),
}


def check_single_runs(experiment):
    """In float64 they differ by rounding alone; 1e-16 at each weight becomes 1e-12 at most."""
    own = together(experiment, draws="trainer", dtype=torch.float64)
    for i, seed in enumerate(SEEDS):
        one = replace(experiment, seed=seed)
        single = in_float64(Trainer(one, one.data.load("train")))
        for _ in range(STEPS):
            single.train_step()
        for weights, net in ((own.net, single.net), (own.ema, single.ema.module)):
            for name, weight in net.named_parameters():
                torch.testing.assert_close(weights[name][i, 0], weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_member_is_a_single_run(objective):
    check_single_runs(named(objective))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_member_of_a_variant_is_a_single_run(variant):
    check_single_runs(VARIANTS[variant])


@pytest.mark.slow
def test_objectives_differ():
    """No two objectives end with the same weights, though their draws are the same."""
    heads = {name: together(named(name)).net["head.weight"] for name in OBJECTIVES}
    ends = torch.stack([*heads.values()]).detach().flatten(1)
    assert torch.cdist(ends, ends).fill_diagonal_(1).min() > 1e-6


def test_alpha_is_fixed_at_the_ends_and_read_between():
    """1 / (1 + exp(25 (k / 5 - 1/2))) within .005 of 1 in the steps 0 and 1, of 0 from 4 on."""
    alphas = AlphaOfSteps(named("alpha-Flow"), STEPS + 1, torch.device("cpu"))
    assert [alphas.fixed(k) for k in range(STEPS + 1)] == [1, 1, None, None, 0, 0]
    read = alphas(None, torch.tensor([2]))
    assert read.item() == pytest.approx(1 / (1 + math.exp(-2.5))) and read.shape == ()
    assert alphas(1.0, torch.tensor([2])) == 1.0
    other = AlphaOfSteps(TINY, STEPS, torch.device("cpu"))
    assert {other.fixed(k) for k in range(STEPS)} == {0.0}


def test_a_program_serves_the_steps_of_equal_operations(monkeypatch):
    """An alpha-Flow is recorded three times, any other objective once; a trace likewise."""
    recorded = []
    monkeypatch.setattr(CudaStreamRunner, "record", lambda self, work: recorded.append(1) or work)
    for name, programs in (("alpha-Flow", 3), ("semigroup", 1)):
        recorded.clear()
        own = together(named(name))
        assert len(recorded) == programs
        own.gradient_trace()
        assert len(recorded) == programs + 1 and own.net["head.weight"].dtype == torch.float32


def test_an_alpha_flow_resumes_between_its_programs():
    whole, first = together(named("alpha-Flow")), together(named("alpha-Flow"), steps=3)
    resumed = together(named("alpha-Flow"), steps=1)
    resumed.load_state_dict(first.state_dict())
    resumed.advance(2)
    assert all(torch.equal(w, resumed.net[name]) for name, w in whole.net.items())


@pytest.mark.parametrize(("sampler", "solve"), [("heun", heun), ("euler", euler)])
def test_samples_are_by_the_experiments_sampler(sampler, solve):
    how = {"evaluation.sampler": sampler, "evaluation.sampling_steps": 3}
    own, e = together(named("flow matching", **how), steps=3), torch.randn(5, 2)
    net = TINY.model.build((2,))
    net.load_state_dict({name: weight[1, 0] for name, weight in own.ema.items()})
    torch.testing.assert_close(own.samples(e)[1, 0], solve(boundary_velocity(net), e, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_replayed_programs_are_the_eager_steps(objective, monkeypatch):
    """On a GPU, bit for bit, with all programs of an alpha-Flow."""
    gpu = torch.device("cuda")
    recorded = together(named(objective), device=gpu)
    traces = [recorded.gradient_trace()]
    monkeypatch.setattr(CudaStreamRunner, "record", lambda self, work: work)
    eager = together(named(objective), device=gpu)
    traces.append(eager.gradient_trace())
    recorded.wait(), eager.wait()
    assert all(torch.equal(w, recorded.net[name]) for name, w in eager.net.items())
    assert torch.equal(*traces)
