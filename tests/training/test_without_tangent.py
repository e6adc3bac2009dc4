"""Objectives without a tangent in a run: workers, resuming, evaluation, and what is refused."""

from dataclasses import replace

import pytest
import torch
from helpers import toy
from helpers.tiny import same
from helpers.toy import after, saved, trainer

from vamf.diagnostics.probe import Probe
from vamf.diagnostics.variance import GAP, TIMES
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.objectives.semigroup import SemigroupLoss
from vamf.flow.objectives.terms import AdaptiveWeight, Draws
from vamf.flow.tangents import boundary_velocity
from vamf.flow.times import UniformTimes
from vamf.presets import PRESETS
from vamf.rng import generator
from vamf.training.evaluation import evaluate, gradient_variance, loss_variance
from vamf.training.step.objective import draw

TOY = replace(
    toy.TOY,
    times=UniformTimes(prob_equal=0.3),
    loss=SemigroupLoss(weight=AdaptiveWeight(p=0.5)),
    ema=0.5,
    batch=10,
    steps=8,
)
TERMINAL = {"loss.kind": "TerminalVelocityLoss", "loss.weight.p": 0.5}
STOPPED = TERMINAL | {"loss.stop_derivative": True}
EACH = pytest.mark.parametrize(
    "experiment",
    [TOY, TOY.override({"loss.split": "middle"}), TOY.override(TERMINAL), TOY.override(STOPPED)],
    ids=["semigroup", "middle", "terminal", "stopped"],
)


def trained(experiment, steps=2):
    return after(steps, trainer(experiment))


def gradient(loss, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


@EACH
def test_the_mean_gradient_of_two_workers_is_that_of_one(experiment):
    single = trained(experiment)
    losses = []
    for rank in range(2):
        worker = trainer(experiment, Workers(rank, 2))
        worker.net.load_state_dict(single.net.state_dict())
        worker.ema.load_state_dict(single.ema.state_dict())
        losses.append(gradient(worker.objective(worker.objective.inputs(5)).loss, worker.net))
    whole = gradient(single.objective(single.objective.inputs(5)).loss, single.net)
    assert (sum(losses) / 2 - whole).norm() < 1e-5 * whole.norm()  # float32, in another order


@EACH
def test_resumed_is_never_interrupted_bit_for_bit(experiment):
    resumed = trainer(experiment)
    resumed.load_state_dict(saved(trained(experiment)))
    assert same(after(2, resumed).state_dict(), trained(experiment, 4).state_dict())


@EACH
def test_the_compiled_step_is_the_one_that_is_not(experiment):
    fast = {"compute.compile": True}
    if experiment.loss == TOY.override(TERMINAL).loss:
        with pytest.raises(ValueError, match=r"without a graph.* needs loss\.stop_derivative true"):
            experiment.override(fast)
        return
    found = []
    for own in (trained(experiment), trained(experiment.override(fast))):
        terms = own.objective(own.objective.inputs(2))
        found.append((terms.squared_error, gradient(terms.loss, own.net)))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)  # float32


@EACH
def test_evaluation_measures_the_variance_of_the_objectives_own_loss(experiment):
    own = trained(experiment)
    u, rows = own.ema, []
    v_hat, unweighted = boundary_velocity(u), experiment.override({"loss.weight.p": 0.0})
    n = experiment.evaluation.variance_samples
    for row, time in enumerate(TIMES):
        g = generator(experiment.evaluation.seed, "loss_variance", row)
        x = experiment.data.load("test").draw(n, g)
        e, uniform = torch.randn(x.shape, generator=g), torch.rand(n, generator=g)
        t = torch.full((n,), time)
        d = Draws(x, e, (t - GAP).clamp_min(0), t)
        terms = unweighted.loss(u, d, beta=0.0, v_hat=v_hat, anchor_uniform=uniform)
        rows.append(terms.squared_error.double() / 2)
    (found,) = loss_variance(u, v_hat, own.beta, experiment, Workers()).values()
    assert found.value == pytest.approx(torch.stack(rows).var(1).mean().item(), rel=1e-5)
    gradients = []
    for index in range(experiment.evaluation.gradient_batches):
        g = generator(experiment.evaluation.seed, "gradient_variance", index)
        d, uniform = draw(experiment, experiment.data.load("train").draw(10, g), g)
        terms = unweighted.loss(own.net, d, beta=0.0, v_hat=own.v_hat, anchor_uniform=uniform)
        gradients.append(gradient(terms.loss, own.net) / 2)
    expected = torch.stack(gradients).double().var(0).mean().item()
    (found,) = gradient_variance(own.net, own.v_hat, own.beta, experiment, Workers()).values()
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert {"eval/loss_variance", "eval/gradient_variance"} < set(evaluate(own))


def test_a_large_gradient_variance_is_taken_part_by_part(monkeypatch):
    from vamf.diagnostics import variance

    own = trained(TOY)
    whole = gradient_variance(own.net, own.v_hat, own.beta, TOY, Workers())
    monkeypatch.setattr(variance, "NUMBERS", 6)  # three points at once
    (parts,) = gradient_variance(own.net, own.v_hat, own.beta, TOY, Workers()).values()
    assert parts.value == pytest.approx(whole["gradient_variance"].value, rel=1e-4)


MIXED = {"loss.kind": "MeanFlowLoss", "loss.gamma": 0.5, "beta.value": 0.5}


@pytest.mark.parametrize("name", ["gamma", "difference"])
def test_evaluation_leaves_out_weights_anchor_and_warm_up(name):
    """As of other losses: of one whose target or derivative is not that of the landscape."""
    plain = TOY.override(MIXED if name == "gamma" else {"loss.kind": "MeanFlowLoss"})
    if name == "difference":
        plain = plain.override({"loss.difference.epsilon": 1e-3, "beta.value": 0.5})
    weighted = {"loss.weight.p": 1.0, "loss.anchor.weight": 0.1, "loss.tangent_warmup": 0.5}
    weighted |= {} if name == "difference" else {"loss.trace.probes": 1}
    own = trained(plain)
    found = []
    for experiment in (plain, plain.override(weighted)):
        given = (own.v_hat, own.beta, experiment, Workers())
        found.append((loss_variance(own.ema, *given), gradient_variance(own.net, *given)))
    assert found[0] == found[1]
    other = plain.override({"loss.gamma": 0.0, "loss.difference": None})
    assert loss_variance(own.ema, own.v_hat, own.beta, other, Workers()) != found[0][0]


@EACH
def test_it_goes_to_a_file_and_back(experiment):
    assert Experiment.from_dict(experiment.to_dict()) == experiment


@EACH
@pytest.mark.parametrize("changes", [{}, {"guidance.omega": 2.0}, {"guidance.max_scale": 4.0}])
def test_images_with_labels_are_trained_on(experiment, changes):
    labelled = PRESETS["digits"].override(
        {
            "beta.value": 0.0,
            "batch": 8,
            "model.channels": 8,
            "model.classes": 10,
            "model.guided": "guidance.max_scale" in changes,
            "guidance.dropout": 0.5,
            **changes,
        }
    )
    loss = {f"loss.{name}": value for name, value in experiment.to_dict()["loss"].items()}
    if changes and "boundary" in experiment.to_dict()["loss"]:
        with pytest.raises(ValueError, match=r"needs loss\.boundary null with guidance"):
            labelled.override(loss)
        loss["loss.boundary"] = None
    own = trained(labelled.override(loss), 1)
    assert own.collect()["loss/train"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta.value": 0.5}, "beta must be 0 for a SemigroupLoss, which has no tangent to mix"),
        ({"beta.kind": "BetaOfTime"}, "beta must be 0 for a SemigroupLoss"),
        ({"beta.kind": "AdaptiveBeta"}, "beta must be 0 for a SemigroupLoss.*got β adaptive"),
        ({"probe.every": 5}, "a probe and an adaptive beta need a loss.*got SemigroupLoss"),
        ({"times.prob_equal": 0.0}, r"a SemigroupLoss needs times\.prob_equal > 0"),
        (TERMINAL | {"beta.value": 0.5}, "beta must be 0 for a TerminalVelocityLoss"),
        ({"loss.split": "half"}, "loss.split"),
    ],
    ids=str,
)
def test_what_they_do_not_go_with_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        TOY.override(changes)


def test_a_checkpoint_without_a_tangent_has_no_landscape():
    with pytest.raises(ValueError, match=r"a landscape needs a loss .*got SemigroupLoss"):
        trained(TOY, 0).probe(Probe(pairs=2))
    assert "kappa/t0.5" in trained(TOY, 0).ratios(4)
