"""Ensembles: each member is a single run, alone and undisturbed by the others."""

import io
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers.single_runs import in_float64

from vamf.data.mixtures import Mixture
from vamf.data.toys import Toy
from vamf.diagnostics.variance import flat_gradient, trace_with_error
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation, Optimiser
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.semigroup import SemigroupLoss
from vamf.flow.objectives.terms import AdaptiveWeight, Draws
from vamf.flow.samplers import sample
from vamf.flow.schedules import BetaSchedule
from vamf.flow.tangents import boundary_velocity
from vamf.flow.times import UniformTimes
from vamf.flow.trace import TraceWeight
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.presets import PRESETS
from vamf.reproduction.ensemble import draw_blocks
from vamf.reproduction.ensemble import ensemble as ensembles
from vamf.reproduction.ensemble.cuda_stream_runner import CudaStreamRunner
from vamf.reproduction.ensemble.ensemble import TRACE_BATCHES, Ensemble, train_together
from vamf.training.step.trainer import Trainer

SMALL = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(16, 16), embedding=8),
    times=UniformTimes(prob_equal=0.25),
    optim=Optimiser(lr=1e-2, warmup=3),
    ema=0.9,
    batch=16,
    steps=40,
    evaluation=Evaluation(distance=SlicedWasserstein()),
)
BETAS, SEEDS = (0.0, 0.3, 1.0), (42, 0)


class Unknown(MeanFlowLoss):
    """An objective of a user's own."""


def ensemble(experiment=SMALL, betas=BETAS, seeds=SEEDS, steps=0, **options):
    own = Ensemble(experiment, betas, seeds, **options)
    own.advance(steps)
    return own


def alone(experiment, beta, seed, steps):
    one = replace(experiment, beta=BetaSchedule(value=beta), seed=seed)
    trainer = in_float64(Trainer(one, one.data.load("train")))
    for _ in range(steps):
        trainer.train_step()
    return trainer


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("proxy", ["ema", "online"])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_member_is_a_single_run(proxy, p):
    """In float64, after 20 steps of up to .01 each, they differ by rounding alone.

    Matrix products of one network and of stacked ones add in other orders: 1e-16 at each weight.
    """
    experiment = replace(SMALL, proxy=proxy, loss=MeanFlowLoss(weight=AdaptiveWeight(p=p)))
    own = ensemble(experiment, steps=20, draws="trainer", dtype=torch.float64)
    for (i, seed), (j, beta) in product(enumerate(SEEDS), enumerate(BETAS)):
        single = alone(experiment, beta, seed, 20)
        for name, weight in single.net.named_parameters():
            torch.testing.assert_close(own.net[name][i, j], weight, rtol=0, atol=1e-12)
        for name, weight in single.ema.module.named_parameters():
            torch.testing.assert_close(own.ema[name][i, j], weight, rtol=0, atol=1e-12)
    assert (own.lost == -1).all()


@pytest.mark.parametrize("draws", ["blocks", "trainer"])
def test_a_member_does_not_depend_on_the_others(draws):
    """An ensemble of one ends with the same weights, up to rounding as above."""
    options = {"draws": draws, "dtype": torch.float64, "steps": 20}
    own = ensemble(**options)
    for (i, seed), (j, beta) in product(enumerate(SEEDS), enumerate(BETAS)):
        one = ensemble(betas=[beta], seeds=[seed], **options)
        for name, weight in one.net.items():
            torch.testing.assert_close(own.net[name][i, j], weight[0, 0], rtol=0, atol=1e-12)


def test_initial_weights_are_those_of_single_runs():
    own = ensemble()
    for i, seed in enumerate(SEEDS):
        net = Trainer(replace(SMALL, seed=seed), SMALL.data.load("train")).net
        for (name, weight), j in product(net.named_parameters(), range(len(BETAS))):
            assert torch.equal(own.net[name][i, j], weight)
            assert torch.equal(own.ema[name][i, j], weight)


def test_betas_part_and_seeds_differ():
    own = ensemble(steps=3)
    head = own.net["head.weight"]
    assert not torch.equal(head[0, 0], head[0, 1]) and not torch.equal(head[0, 0], head[1, 0])


def test_resumed_is_never_interrupted_bit_for_bit(monkeypatch):
    monkeypatch.setattr(draw_blocks, "BLOCK", 8)
    monkeypatch.setattr(ensembles, "BLOCK", 8)
    whole, first = ensemble(steps=29), ensemble(steps=11)
    first.gradient_trace()  # measuring changes nothing
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    resumed = ensemble()
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert resumed.step == 11
    train_together([resumed, ensemble()], 18)
    states = [own.state_dict() for own in (whole, resumed)]
    assert same(*(state.pop("tensors") for state in states)) and states[0] == states[1]
    assert whole.gradient_trace().equal(resumed.gradient_trace())


def test_a_state_of_another_ensemble_is_refused():
    state = ensemble().state_dict()
    with pytest.raises(ValueError, match=r"betas must be \[0.5\] in the saved ensemble; got "):
        ensemble(betas=[0.5]).load_state_dict(state)
    longer = replace(SMALL, steps=41)
    with pytest.raises(ValueError, match=r"^experiment must be "):
        ensemble(longer).load_state_dict(state)


def test_a_lost_member_is_marked_and_leaves_the_others_alone():
    own, other = ensemble(steps=3), ensemble(steps=3)
    with torch.no_grad():
        own.net["head.bias"][1, 2, 0] = torch.inf
    own.advance(4), other.advance(4)
    assert own.lost.tolist() == [[-1, -1, -1], [-1, -1, 4]]
    for name in own.net:
        finite = own.net[name].isfinite().flatten(2).all(2)
        assert finite[own.lost < 0].all()
        assert torch.equal(own.net[name][own.lost < 0], other.net[name][own.lost < 0])
    assert not own.net["head.bias"][1, 2].isfinite().all()


def test_gradient_trace_is_that_of_separate_gradients():
    """By another route: one network at a time, float64 sums over the batches' gradients."""
    own = ensemble(steps=2, dtype=torch.float64)
    keys = [(seed, "gradient_trace", 2) for seed in SEEDS]
    x, e, r, t, _ = draw_blocks.draw_block(SMALL, keys, TRACE_BATCHES, own.device)
    found, (i, j) = own.gradient_trace(), (1, 1)
    net, ema = (SMALL.model.build((2,)).double() for _ in range(2))
    net.load_state_dict({name: weight[i, j] for name, weight in own.net.items()})
    ema.load_state_dict({name: weight[i, j] for name, weight in own.ema.items()})
    gradients = []
    for k in range(TRACE_BATCHES):
        draws = Draws(*(part[k, i].double() for part in (x, e, r, t)), 4)
        loss = SMALL.loss(net, draws, beta=BETAS[j], v_hat=boundary_velocity(ema)).loss
        gradients.append(flat_gradient(loss, net.parameters()))
    per_parameter, _ = trace_with_error(torch.stack(gradients))
    expected = per_parameter * len(gradients[0])
    assert found[i, j].item() == pytest.approx(expected, rel=1e-10)


def test_samples_are_those_of_the_moving_averages():
    own, e = ensemble(steps=5), torch.randn(7, 2)
    net = SMALL.model.build((2,))
    net.load_state_dict({name: weight[1, 2] for name, weight in own.ema.items()})
    with torch.no_grad():
        torch.testing.assert_close(own.samples(e)[1, 2], sample(net, e))
    assert own.samples(e).shape == (2, 3, 7, 2)


@pytest.mark.parametrize("data", [Toy(name="pinwheel"), Mixture(name="gmm", dim=5)])
def test_blocks_have_the_law_of_the_times(data):
    """A quarter of each batch has r = t; the rest r <= t, gaps cut at .5, as single draws do."""
    experiment = replace(SMALL, data=data, times=UniformTimes(prob_equal=0.25, max_gap=0.5))
    block = draw_blocks.block_stream(experiment, [3, 4], torch.device("cpu"))(0)
    assert block.x.shape == block.e.shape == (draw_blocks.BLOCK, 2, 16, *data.load("train").shape)
    assert torch.equal(block.r[..., :4], block.t[..., :4])
    gap = block.t - block.r
    assert (gap[..., 4:] > 0).all() and gap.max() <= 0.5
    n = gap[..., 4:].numel()  # of two uniform times the larger one has the mean 2/3
    assert abs(block.t.mean() - 2 / 3) < 5 * (1 / 18 / (n / 0.75)) ** 0.5
    # E min(G, 1/2) for the triangular gap G of two uniform times.
    assert abs(gap[..., 4:].mean() - 7 / 24) < 5 * (0.5**2 / n) ** 0.5


def test_blocks_are_functions_of_seed_and_number():
    def block(seeds, number):
        return draw_blocks.block_stream(SMALL, seeds, torch.device("cpu"))(number)

    both, alone_ = block([3, 4], 1), block([4], 1)
    assert all(torch.equal(a[:, 1], b[:, 0]) for a, b in zip(both, alone_, strict=True))
    assert not torch.equal(both.x[:, 0], both.x[:, 1])
    assert not torch.equal(both.e, block([3, 4], 2).e)


def test_trainers_blocks_are_the_trainers_draws():
    block = draw_blocks.trainer_stream(SMALL, [3, 4], torch.device("cpu"))(0)
    objective = Trainer(replace(SMALL, seed=4), SMALL.data.load("train")).objective
    assert len(block.x) == SMALL.steps
    for step in (0, 17):
        draws, uniform = objective.draw(step)
        single = (*draws[:4], uniform)
        assert all(torch.equal(p[step, 1], q) for p, q in zip(block, single, strict=True))


@pytest.mark.parametrize(
    ("changes", "betas", "seeds", "line"),
    [
        ({"batch": 18}, [0], [0], "prob_equal * batch must be whole in an ensemble; got 4.5"),
        ({}, [0, 1.5], [0], "beta must lie in [0, 1]; got 1.5"),
        ({}, [], [0], "betas must be at least one, each once; got []"),
        ({}, [0, 0], [0], "betas must be at least one, each once; got [0, 0]"),
        ({}, [0], [1, 1], "seeds must be at least one, each once; got [1, 1]"),
        ({"proxy": "oracle"}, [0], [0], "an ensemble's proxy must be one of ema, online, batch; "),
        (
            {"loss": MeanFlowLoss(trace=TraceWeight(probes=2))},
            *([0], [0]),
            "an ensemble draws no random signs: loss.trace must be null; got 2 for each sample",
        ),
        (
            {"loss": MeanFlowLoss(tangent_warmup=0.5)},
            *([0], [0]),
            "an ensemble has no warm-up of the tangent: loss.tangent_warmup must be 0; got 0.5",
        ),
        (
            {"loss": SemigroupLoss()},
            *([0, 0.5], [0]),
            "beta must be 0 for a SemigroupLoss, which has no tangent to mix; got ",
        ),
        (
            {"loss": Unknown()},
            *([0], [0]),
            "an ensemble's loss must be one of MeanFlowLoss, AlphaFlowLoss, SemigroupLoss, "
            "TerminalVelocityLoss; got Unknown",
        ),
    ],
)
def test_what_an_ensemble_cannot_train(changes, betas, seeds, line):
    with pytest.raises(ValueError) as raised:
        Ensemble(replace(SMALL, **changes), betas, seeds)
    assert str(raised.value).startswith(line)


def test_images_are_refused():
    with pytest.raises(ValueError, match="an ensemble needs points and an MLPConfig; got Digits"):
        Ensemble(PRESETS["digits"], [0], [0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replayed_graphs_are_the_eager_steps(monkeypatch):
    """On a GPU: recorded and eager, resumed and whole, alone and beside others, bit for bit."""
    gpu = torch.device("cuda")
    recorded, beside, resumed = (ensemble(device=gpu) for _ in range(3))
    train_together([recorded, beside], 40)
    resumed.load_state_dict(ensemble(device=gpu, steps=38).state_dict())
    train_together([resumed], 2)
    monkeypatch.setattr(CudaStreamRunner, "record", lambda self, work: work)
    eager = ensemble(device=gpu, steps=40)
    eager.wait()
    assert same(eager.net, recorded.net) and same(eager.ema, recorded.ema)
    assert same(resumed.net, recorded.net) and same(beside.net, recorded.net)
    traces = [own.gradient_trace() for own in (eager, recorded)]
    eager.wait(), recorded.wait()
    assert torch.equal(*traces)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_member_on_a_gpu_is_a_single_run():
    """In float64, up to the learning rate's rounding to float32, which Adam takes on a GPU."""
    own = ensemble(steps=10, device=torch.device("cuda"), draws="trainer", dtype=torch.float64)
    one = replace(SMALL, beta=BetaSchedule(value=0.3), seed=42)
    workers = Workers(device=torch.device("cuda"))
    single = in_float64(Trainer(one, one.data.load("train"), workers))
    for _ in range(10):
        single.train_step()
    own.wait()
    for name, weight in single.net.named_parameters():
        torch.testing.assert_close(own.net[name][0, 1], weight, rtol=0, atol=1e-7)
