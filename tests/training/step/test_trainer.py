"""Training steps: reproducible, resumable bit for bit, unchanged by evaluation."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import toy
from helpers.tiny import same
from helpers.toy import after, saved, trainer

from vamf.data.digits import Digits
from vamf.data.toys import Toy
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.experiment_settings import Checkpoints, Evaluation, Optimiser
from vamf.flow.objectives.meanflow import path_derivative
from vamf.flow.objectives.terms import squared_norm
from vamf.flow.schedules import BetaSchedule
from vamf.flow.times import UniformTimes
from vamf.metrics.distances import FrechetDistance
from vamf.models.unet import UNetConfig
from vamf.training.checkpoints.checkpoint import find_checkpoint
from vamf.training.loop import Session, checkpoints, train
from vamf.training.step.trainer import (
    NonFiniteLoss,
    build_networks,
    learning_rate,
    named_metrics,
)

TOY = replace(
    toy.TOY,
    times=UniformTimes(prob_equal=0.3),
    beta=BetaSchedule(value=0.9, shape="cosine", end=0.1),
    optim=Optimiser(lr=1e-2, warmup=3),
    log_every=3,
)
DROPOUT = Experiment(
    data=Digits(),
    model=UNetConfig(channels=4, multipliers=(1,), blocks=1, attention=(), dropout=0.5),
    times=UniformTimes(prob_equal=0.3),
    beta=BetaSchedule(value=0.0, shape="linear", end=1.0),
    ema=0.9,
    batch=4,
    steps=4,
    evaluation=Evaluation(
        every=100,
        distance=FrechetDistance(samples=40),
        variance_samples=4,
        gradient_batches=3,
    ),
    checkpoint=Checkpoints(every=2),
)
EVERY_OPTION = DROPOUT.override(
    {
        "model.classes": 10,
        "guidance.cfg_kappa": 0.5,
        "loss.trace.probes": 1,
        "loss.alpha.sharpness": 4.0,
        "loss.anchor.weight": 0.1,
    }
)
BOTH = pytest.mark.parametrize("experiment", [TOY, DROPOUT], ids=["toy", "dropout"])


FAST = DROPOUT.override({"compute.compile": True, "compute.precision": "bfloat16"})
PARTS = FAST.override({"compute.accumulate": 2, "compute.checkpointing": True})


@pytest.mark.parametrize(
    ("experiment", "step"),
    [(TOY, 1), (TOY, 7), (DROPOUT, 2), (EVERY_OPTION, 2), (FAST, 2), (PARTS, 2)],
    ids=["toy, warming up", "toy", "dropout", "every option", "compiled", "in parts"],
)
def test_resumed_is_never_interrupted_bit_for_bit(experiment, step):
    steps = experiment.steps
    whole = after(steps, trainer(experiment))
    first = after(step, trainer(experiment))
    state = saved(first)
    resumed = trainer(experiment)
    torch.manual_seed(99)  # the global stream of the process that resumes is another one
    torch.rand(7)
    resumed.load_state_dict(state)
    after(steps - first.step, resumed)
    assert same(resumed.state_dict(), whole.state_dict())
    assert resumed.beta(torch.ones(1)) == whole.beta(torch.ones(1))


def test_every_part_of_the_state_matters():
    """The test above would notice a part that is not restored: each one changes what follows."""
    whole = after(4, trainer(TOY)).state_dict()
    for part in ("step", "net", "ema", "optimiser"):
        partly = trainer(TOY)
        partly.load_state_dict(copy.deepcopy(after(2, trainer(TOY)).state_dict()))
        fresh = trainer(TOY).state_dict()
        partly.load_state_dict(copy.deepcopy(partly.state_dict() | {part: fresh[part]}))
        state = after(2, partly).state_dict()
        assert any(not torch.equal(state["net"][n], whole["net"][n]) for n in whole["net"]), part


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("step", [6, 7])
def test_a_killed_run_resumes_from_its_checkpoint(step, tmp_path):
    """Checkpoints are at 4, 8 and 12; the run dies at the first report at or after ``step``."""

    def die(progress):
        if progress["step"] >= step:
            raise Interrupted

    train(TOY, Session(directory=tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(TOY, Session(directory=tmp_path / "killed", report=die))
    assert checkpoints(TOY, tmp_path / "killed").latest().step < 12
    reported = []
    resumed = Session(directory=tmp_path / "killed", report=lambda p: reported.append(p["step"]))
    summary = train(TOY, resumed)
    assert summary.step == 12 and min(reported) > 4
    whole, again = (find_checkpoint(tmp_path / n) for n in ("whole", "killed"))
    assert same(again.load(), whole.load())
    measured = ("time/seconds", "time/images_per_second")
    assert {n: v for n, v in again.metrics().items() if n not in measured} == {
        n: v for n, v in whole.metrics().items() if n not in measured
    }
    assert 0 < again.metrics()["time/images_per_second"] < 1e6


@BOTH
def test_evaluation_does_not_disturb_training(experiment, tmp_path):
    rarely, often = experiment, experiment.override({"evaluation.every": 2})
    states, metrics = [], []
    for name, variant in (("rarely", rarely), ("often", often)):
        summary = train(variant, Session(directory=tmp_path / name))
        states.append(checkpoints(variant, tmp_path / name).latest().load())
        metrics.append(summary.metrics)
    assert same(*states)
    assert len(list((tmp_path / "often" / "samples").iterdir())) == experiment.steps / 2
    assert len(list((tmp_path / "rarely" / "samples").iterdir())) == 1
    dropped = "eval/gradient_variance" if experiment is DROPOUT else None  # see test_evaluation.py
    for name in metrics[0].keys() - {dropped}:
        assert metrics[0][name] == metrics[1][name]


def test_moving_average_is_its_recursion():
    own = trainer(TOY)
    average = [p.detach().clone() for p in own.net.parameters()]
    for p, q in zip(own.ema.module.parameters(), average, strict=True):
        assert torch.equal(p, q)  # it starts at the initial weights
    for _ in range(5):
        own.train_step()
        average = [0.9 * a + 0.1 * p for a, p in zip(average, own.net.parameters(), strict=True)]
    for p, q in zip(own.ema.module.parameters(), average, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)  # float32, five roundings
    assert not any(p.requires_grad for p in own.ema.parameters())
    assert not own.ema.training and own.net.training


@BOTH
def test_a_step_changes_every_weight_it_trains(experiment):
    own = trainer(experiment)
    before = {n: p.detach().clone() for n, p in own.net.named_parameters()}
    after(2, own)
    assert all(not torch.equal(p, before[n]) for n, p in own.net.named_parameters())


def test_first_step_is_adams():
    """The first step of Adam is lr * g / (|g| + eps), whatever its decays; lr is warmed up."""
    own = trainer(TOY)
    before = [p.detach().clone() for p in own.net.parameters()]
    gradients = torch.autograd.grad(
        own.objective(own.objective.inputs(0)).loss, list(own.net.parameters())
    )
    own.train_step()
    for p, old, g in zip(own.net.parameters(), before, gradients, strict=True):
        expected = old - 1e-2 / 3 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-7)  # float32


def test_learning_rate_of_each_step_reaches_the_optimiser():
    own, rates = trainer(TOY), []
    for _ in range(TOY.steps):
        own.train_step()
        rates.append(own.optimiser.param_groups[0]["lr"])
    assert rates == [learning_rate(TOY.optim, step, TOY.steps) for step in range(TOY.steps)]
    assert rates[0] < rates[1] < rates[2] and len(set(rates)) > 9


def test_learning_rate_formula():
    optim = Optimiser(lr=2.0, warmup=4, final=0.1)
    rates = [learning_rate(optim, step, 24) for step in range(25)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    cosine = [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * p / 20)) / 2) for p in range(21)]
    assert rates[4:] == pytest.approx(cosine)
    assert max(rates) == 2.0 and rates[24] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[3:]))


def test_learning_rate_without_warmup_or_decay():
    assert learning_rate(Optimiser(lr=0.5, final=1), 0, 10) == 0.5
    assert {learning_rate(Optimiser(lr=0.5, final=1), s, 10) for s in range(10)} == {0.5}
    short = Optimiser(lr=1.0, warmup=50)  # longer than the run, which never reaches it
    assert learning_rate(short, 1, 2) == pytest.approx(2 / 50)


class Poisoned:
    """A data set whose batch of one step, counted from 0, holds one NaN."""

    def __init__(self, step):
        self.step, self.real = step, TOY.data.load("train")
        self.shape = self.real.shape

    def batch(self, step, *args):
        x = self.real.batch(step, *args)
        if step == self.step:
            x[3, 0] = math.nan
        return x

    def draw(self, *args):
        return self.real.draw(*args)


@pytest.mark.parametrize(("bad", "window"), [(0, 3), (2, 3), (4, 3), (5, 1), (3, 12)])
def test_first_step_that_is_not_finite_is_named(bad, window):
    """Steps are named from 1, as everywhere in logs; metrics are collected every ``window``."""
    own = trainer(TOY, dataset=Poisoned(bad))
    with pytest.raises(NonFiniteLoss, match=rf"the loss of step {bad + 1} is not finite"):
        for _ in range(12 // window):
            after(window, own).collect()


def test_every_worker_learns_of_another_ones_failure():
    class Beside(Workers):
        """Rank 0 of two; the second loss of rank 1 was infinite."""

        def sum(self, tensor):
            tensor[1] += math.inf
            return tensor

    with pytest.raises(NonFiniteLoss, match="step 2 "):
        after(3, trainer(TOY, workers=Beside(0, 2))).collect()


def test_a_run_that_fails_keeps_its_checkpoints(tmp_path, monkeypatch):
    dataset = Poisoned(9)
    monkeypatch.setattr(Toy, "load", lambda self, split: dataset)
    with pytest.raises(NonFiniteLoss, match="step 10 "):
        train(TOY, Session(directory=tmp_path))
    assert [c.step for c in checkpoints(TOY, tmp_path).all()] == [4, 8]
    assert not (tmp_path / "summary.json").exists()


def test_an_evaluation_that_is_not_finite_is_noted_and_never_the_best(tmp_path, monkeypatch):
    """From step 5 on the test points are NaN; training continues with the training points."""
    load, broken, notes = Toy.load, [], []

    class Broken:
        def draw(self, n, generator):
            return torch.full((n, 2), math.nan)

    def report(progress):
        broken[:] = [True] * (progress["step"] >= 4)

    monkeypatch.setattr(
        Toy, "load", lambda own, split: Broken() if broken and split == "test" else load(own, split)
    )
    session = Session(directory=tmp_path, report=report, note=lambda *note: notes.append(note))
    experiment = TOY.override({"evaluation.every": 4})
    summary = train(experiment, session)
    key = f"eval/{experiment.evaluation.distance.key}"
    assert math.isnan(summary.metrics[key].value) and summary.step == 12
    assert [name for name, _ in notes] == ["evaluation.not_finite"] * 2
    assert notes[0][1].startswith(f"step 8 is never the best: {key} is nan")
    assert find_checkpoint(tmp_path).step == 4


def test_collect_gives_means_since_the_last_call():
    own, losses, errors = trainer(TOY), [], []
    for step in range(3):
        terms = own.objective(own.objective.inputs(step))
        losses.append(terms.loss.item()), errors.append(terms.squared_error.mean().item())
        own.train_step()
    metrics = own.collect()
    assert metrics["loss/train"] == pytest.approx(sum(losses) / 3, rel=1e-6)  # float32 mean
    assert metrics["loss/per_dimension"] == pytest.approx(sum(errors) / 3 / 2, rel=1e-6)
    assert own.collect() == {}
    last = own.objective(own.objective.inputs(3)).loss.item()
    assert after(1, own).collect()["loss/train"] == pytest.approx(last, rel=1e-6)


CLIPPED = {"times.kind": "ClippedLogitNormalTimes", "times.r_mean": 0.5}
"""Changes by which many of the samples behind ``n_equal`` have r = t, too."""


@pytest.mark.parametrize("times", [{}, CLIPPED], ids=["sorted", "clipped"])
@pytest.mark.parametrize("prob_equal", [0.0, 0.3, 1.0])
def test_boundary_and_interior_are_means_over_their_own_samples(prob_equal, times):
    """Over all steps and samples at once, however many of each a step holds."""
    own = trainer(TOY.override({**times, "times.prob_equal": prob_equal}))
    boundary, interior, corrections, clipped = [], [], [], 0
    for step in range(5):
        draws, _ = own.objective.draw(step)
        z, v_cond, correction = path_derivative(
            own.net, draws, own.objective.beta(step, draws.t), own.objective.v_hat
        )
        error = squared_norm(own.net(z, draws.r, draws.t) + correction - v_cond).tolist()
        for one, r, t in zip(error, draws.r.tolist(), draws.t.tolist(), strict=True):
            (boundary if r == t else interior).append(one)
        clipped += (draws.r == draws.t).sum().item() - draws.n_equal
        corrections += squared_norm(correction).tolist()
        own.train_step()
    assert (clipped > 0) == (bool(times) and prob_equal < 1)
    collected = own.collect()
    expected = {"loss/boundary": boundary, "loss/interior": interior, "loss/dudt": corrections}
    for name, values in expected.items():
        assert (name in collected) == bool(values)
        if values:  # float32
            assert collected[name] == pytest.approx(sum(values) / len(values), rel=1e-5)
    both = (sum(boundary) + sum(interior)) / 40 / 2
    assert collected["loss/per_dimension"] == pytest.approx(both, rel=1e-5)


def test_alpha_of_the_last_step_is_collected():
    own = after(7, trainer(TOY.override({"loss.alpha.sharpness": 6.0})))
    assert own.collect()["schedule/alpha"] == pytest.approx(0.5)  # step 6 of 12, from 0
    assert "schedule/alpha" not in after(1, trainer(TOY)).collect()


@pytest.mark.parametrize("world", [2, 3])
def test_collected_metrics_are_global_whatever_the_workers_share(world):
    """Workers have different numbers of r = t: sums and counts are added, not means averaged."""

    class Kept(Workers):
        def sum(self, tensor):
            kept.append(tensor.clone())
            return tensor

    experiment = TOY.override({"batch": 12, "times.prob_equal": 5 / 12, "optim.lr": 1e-30})
    whole = after(3, trainer(experiment)).collect()
    kept = []
    for rank in range(world):
        after(3, trainer(experiment, Kept(rank, world))).collect()
    joined = named_metrics((sum(kept) / world).mean(0), 2)
    assert joined == pytest.approx(whole, rel=1e-5)  # float32, weights that hardly move


def test_gradient_norm_is_the_last_steps():
    own = after(2, trainer(TOY))
    gradients = torch.cat([p.grad.flatten() for p in own.net.parameters()])
    assert own.gradient_norm() == pytest.approx(gradients.norm().item(), rel=1e-6)


def test_initial_weights_are_a_function_of_the_seed():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    a, _ = build_networks(TOY, (2,), torch.device("cpu"))
    assert torch.equal(torch.rand(2), expected)  # the global stream is left alone
    b, _ = build_networks(TOY, (2,), torch.device("cpu"))
    c, _ = build_networks(TOY.override({"seed": 1}), (2,), torch.device("cpu"))
    assert same(a.state_dict(), b.state_dict())
    assert not torch.equal(a.head.weight, c.head.weight)


@pytest.mark.parametrize("proxy", ["ema", "online"])
def test_proxy_is_the_network_that_the_experiment_names(proxy):
    own = after(4, trainer(TOY.override({"proxy": proxy})))
    z, t = torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.9])
    velocities = {"ema": own.ema(z, t, t), "online": own.net(z, t, t)}
    assert torch.equal(own.v_hat(z, t), velocities[proxy])
    assert not torch.equal(velocities["ema"], velocities["online"])
    assert torch.equal(own.objective.v_hat(z, t), own.v_hat(z, t))


def test_dropout_masks_follow_seed_rank_and_step():
    """Two steps from one state differ by their mask alone when their rank differs."""
    states = []
    for rank in (0, 0, 1):
        own = trainer(DROPOUT)
        own.workers = Workers(rank, 1)  # the objective keeps the whole batch
        torch.manual_seed(len(states))
        states.append(after(1, own).state_dict()["net"])
    assert same(states[0], states[1])
    assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])
