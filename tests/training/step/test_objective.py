"""The objective gives the same on any number of workers, and at any step, after any history."""

import pytest
import torch

from vamf.data.digits import Digits
from vamf.data.toys import Toy
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation
from vamf.flow.guidance import Guidance, with_labels
from vamf.flow.objectives.meanflow import Anchor, MeanFlowLoss
from vamf.flow.objectives.terms import AdaptiveWeight
from vamf.flow.path import interpolate
from vamf.flow.schedules import BetaSchedule
from vamf.flow.tangents import boundary_velocity
from vamf.flow.times import UniformTimes
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.rng import generator
from vamf.training.step.objective import Objective, draw
from vamf.training.step.trainer import watched

EXPERIMENT = Experiment(
    data=Toy(name="two_moons"),
    model=MLPConfig(hidden=(16,), embedding=4),
    times=UniformTimes(prob_equal=0.3),
    beta=BetaSchedule(value=0.2, shape="linear", end=0.8),
    loss=MeanFlowLoss(weight=AdaptiveWeight(p=0.5), anchor=Anchor(weight=0.2, max_gap=0.1)),
    batch=12,
    steps=10,
    evaluation=Evaluation(distance=SlicedWasserstein(samples=8)),
)


def network():
    torch.manual_seed(0)
    net = EXPERIMENT.model.build((2,))
    with torch.no_grad():
        net.head.weight.normal_()  # or else u is nearly 0
    return net


def objective(workers=Workers(), experiment=EXPERIMENT, net=None):  # noqa: B008
    net = net or network()
    dataset = experiment.data.load("train")
    return Objective(experiment, net, boundary_velocity(net), dataset, workers)


def loss_of(own, step):
    """The terms of a step's loss."""
    return own(own.inputs(step))


def shares(world, step, experiment=EXPERIMENT):
    return [objective(Workers(rank, world), experiment).draw(step) for rank in range(world)]


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize(("world", "batch"), [(1, 12), (2, 12), (3, 12), (2, 7), (3, 10)])
def test_shares_of_workers_make_up_the_single_workers_draws(world, batch, step):
    experiment = EXPERIMENT.override({"batch": batch})
    whole, uniform = objective(experiment=experiment).draw(step)
    parts = shares(world, step, experiment)
    for name in ("x", "e", "r", "t"):
        joined = torch.full_like(getattr(whole, name), float("nan"))
        for rank, (part, _) in enumerate(parts):
            joined[rank::world] = getattr(part, name)
        assert torch.equal(joined, getattr(whole, name))
    assert sum(part.n_equal for part, _ in parts) == whole.n_equal
    joined = torch.full_like(uniform, float("nan"))
    for rank, (_, part) in enumerate(parts):
        joined[rank::world] = part
    assert torch.equal(joined, uniform)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_equal_times_come_first_in_every_share(world):
    for step in range(5):
        for draws, _ in shares(world, step):
            assert (draws.r[: draws.n_equal] == draws.t[: draws.n_equal]).all()
            assert (draws.r[draws.n_equal :] < draws.t[draws.n_equal :]).all()


@pytest.mark.parametrize("world", [2, 3])
def test_mean_gradient_of_shares_is_the_joined_batchs(world):
    """The same computation as DistributedDataParallel, without processes."""
    single = objective()
    loss_of(single, 3).loss.backward()
    expected = [p.grad for p in single.net.parameters()]
    workers = [objective(Workers(rank, world)) for rank in range(world)]
    losses = [loss_of(worker, 3).loss for worker in workers]
    torch.testing.assert_close(sum(losses) / world, loss_of(single, 3).loss, rtol=1e-6, atol=0)
    for loss in losses:
        loss.backward()
    gradients = zip(*([p.grad for p in worker.net.parameters()] for worker in workers), strict=True)
    for mean, whole in zip((torch.stack(g).mean(0) for g in gradients), expected, strict=True):
        assert (mean - whole).norm() < 1e-6 * whole.norm()  # float32 sums in another order


def test_a_step_is_a_function_of_seed_and_step():
    first, again = objective(), objective()
    first.draw(0), loss_of(first, 1)  # neither earlier steps nor the global stream have an effect
    torch.manual_seed(5)
    for a, b in zip((*first.draw(4)[0][:4],), (*again.draw(4)[0][:4],), strict=True):
        assert torch.equal(a, b)
    other = objective(experiment=EXPERIMENT.override({"seed": 1})).draw(4)[0]
    for name in ("x", "e", "t"):
        assert not torch.equal(getattr(first.draw(4)[0], name), getattr(other, name))
        assert not torch.equal(getattr(first.draw(4)[0], name), getattr(first.draw(5)[0], name))


def test_drawing_leaves_the_global_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    objective_ = Objective(EXPERIMENT, torch.nn.Identity(), None, Toy().load("train"), Workers())
    objective_.draw(0)
    assert torch.equal(torch.rand(3), expected)


def test_share_of_equal_times_is_that_of_the_distribution():
    """.3 * 12 = 3.6: three or four a step, .6 of a Bernoulli; 5 standard errors over 400 steps."""
    counts = torch.tensor([objective_draws(step).n_equal for step in range(400)]).double()
    assert set(counts.tolist()) == {3, 4}
    assert abs(counts.mean() - 3.6) < 5 * (0.6 * 0.4 / 400) ** 0.5


def objective_draws(step):
    return draw(EXPERIMENT, torch.zeros(12, 2), generator("share", step))[0]


def test_noise_is_standard_normal_and_fits_the_data():
    """5 standard errors: of the mean sqrt(1 / n), of the variance sqrt(2 / n)."""
    draws, uniform = draw(EXPERIMENT, torch.zeros(4000, 1, 2, 2), generator("noise"))
    n = draws.e.numel()
    assert draws.e.shape == draws.x.shape and uniform.shape == (4000,)
    assert abs(draws.e.mean()) < 5 * n**-0.5 and abs(draws.e.var() - 1) < 5 * (2 / n) ** 0.5
    assert 0 <= uniform.min() < 0.01 and 0.99 < uniform.max() < 1


def test_forward_is_the_experiments_loss_of_its_draws():
    own = objective()
    draws, uniform = own.draw(2)
    expected = EXPERIMENT.loss(
        own.net, draws, beta=0.2 + 0.6 * 2 / 10, v_hat=own.v_hat, anchor_uniform=uniform
    )
    terms = loss_of(own, 2)
    assert torch.equal(terms.squared_error, expected.squared_error)
    assert torch.equal(terms.loss, expected.loss)


def test_beta_follows_the_share_of_steps_taken():
    t = torch.zeros(1)
    assert [objective().beta(s, t) for s in (0, 5, 10)] == pytest.approx([0.2, 0.5, 0.8])


def test_only_the_network_is_trained():
    own = objective()
    assert {id(p) for p in own.parameters()} == {id(p) for p in own.net.parameters()}


TRACED = EXPERIMENT.override({"loss.trace.probes": 2})


@pytest.mark.parametrize("world", [2, 3])
def test_signs_of_workers_make_up_the_single_workers(world):
    whole = objective(experiment=TRACED).signs(3)
    assert whole.shape == (2, 12, 2)
    for rank in range(world):
        part = objective(Workers(rank, world), TRACED).signs(3)
        assert torch.equal(part, whole[:, rank::world])
    assert not torch.equal(whole, objective(experiment=TRACED).signs(4))


def test_signs_change_no_other_number():
    plain, traced = objective(), objective(experiment=TRACED)
    for a, b in zip(plain.draw(2)[0], traced.draw(2)[0], strict=True):
        assert (a == b) if isinstance(a, int) else torch.equal(a, b)
    assert torch.equal(plain.draw(2)[1], traced.draw(2)[1])
    assert torch.equal(loss_of(plain, 2).squared_error, loss_of(traced, 2).squared_error)
    assert not torch.equal(loss_of(plain, 2).loss, loss_of(traced, 2).loss)


def test_signs_are_drawn_only_when_needed():
    assert objective().signs(0) is None
    assert objective(experiment=EXPERIMENT.override({"loss.trace.probes": 0})).signs(0) is None


def test_alpha_follows_the_share_of_steps_taken():
    """Ten steps: trajectory flow matching first, the middle of the sigmoid in step 5, MeanFlow."""
    curriculum = EXPERIMENT.override(
        {"loss.alpha.finish": 1.0, "beta.value": 0.2, "loss.anchor": None}
    )
    for step, alpha in ((0, 1.0), (5, 0.5), (9, 0.0)):
        constant = curriculum.override({"loss.alpha": None, "loss.alpha.value": alpha})
        plain = curriculum.override({"loss.alpha": None})
        curve, fixed, mean_flow = (
            loss_of(objective(experiment=e), step).loss for e in (curriculum, constant, plain)
        )
        assert torch.equal(curve, fixed)
        assert torch.equal(curve, mean_flow) == (alpha == 0)


def guided(**changes):
    """Labelled digits in a small perceptron."""
    return Experiment(
        data=Digits(),
        model=MLPConfig(hidden=(16,), embedding=4, classes=10),
        beta=BetaSchedule(value=0.3),
        guidance=Guidance(cfg_kappa=0.5, dropout=0.4),
        batch=12,
        steps=10,
    ).override(changes)


def test_the_velocity_head_learns_by_flow_matching_weighted_as_the_loss():
    """Its gradient is that of |v(z, t) - v_cond|^2 / (|...|^2 + c)^p, and of nothing else."""
    experiment = EXPERIMENT.override({"proxy": "head", "model.velocity_head": True})
    torch.manual_seed(0)
    net = experiment.model.build((2,))
    with torch.no_grad():
        for layer in (net.head, net.velocity_head):
            layer.weight.normal_()
    own, head = objective(experiment=experiment, net=net), list(net.velocity_head.parameters())
    found = torch.autograd.grad(loss_of(own, 2).loss, head)
    draws, _ = own.draw(2)
    z, v_cond = interpolate(draws.x, draws.e, draws.t)
    error = (net.velocity(z, draws.t) - v_cond).square().sum(1)
    weighted = error / (error.detach() + 0.01) ** 0.5
    for ours, expected in zip(found, torch.autograd.grad(weighted.mean(), head), strict=True):
        assert expected.norm() > 0.01
        torch.testing.assert_close(ours, expected)


def test_what_is_collected_of_a_step_keeps_no_graph():
    """Or the activations of all steps between two logs would stay in memory."""
    own = objective()
    terms, (draws, _) = loss_of(own, 2), own.draw(2)
    assert terms.loss.requires_grad and not watched(terms, draws).requires_grad
    assert watched(terms, draws)[0] == terms.loss


GUIDED = {"model.guided": True, "guidance.max_scale": 8.0, "guidance.cfg_kappa": 0.0}
"""Changes that give the network the guidance scale as input."""

IMF = GUIDED | {
    "guidance.random_interval": True,
    "model.guided_interval": True,
    "model.velocity_head": True,
    "proxy": "head",
    "head.every_r": True,
    "beta.value": 1.0,
    "times.prob_equal": 0.5,
}
"""Those of improved Mean Flows: an interval as input, and a velocity head."""


def guided_objective(experiment, workers=Workers()):  # noqa: B008
    torch.manual_seed(0)
    net = experiment.model.build((1, 8, 8))
    with torch.no_grad():
        net.head.weight.normal_()
    dataset = experiment.data.load("train")
    return Objective(experiment, net, boundary_velocity(net), dataset, workers)


@pytest.mark.parametrize("mixing", ["tangent", "parameters"])
def test_guided_forward_is_the_guided_loss_of_its_draws(mixing):
    experiment = guided(**{"guidance.mixing": mixing})
    own = guided_objective(experiment)
    draws, uniform = own.draw(2)
    y, dropped, *_ = labels = own.labels(2)
    assert 0 < dropped.sum() < 12 and ((y == 10) == dropped).all()
    z, v_cond = interpolate(draws.x, draws.e, draws.t)
    v_hat = boundary_velocity(own.net)
    velocity, beta, _ = experiment.guidance(v_hat, v_hat, z, draws.t, v_cond, labels, 0.3)
    expected = experiment.loss(
        with_labels(own.net, y),
        draws,
        beta=beta,
        v_hat=with_labels(v_hat, y),
        anchor_uniform=uniform,
        velocity=velocity,
    )
    assert torch.equal(loss_of(own, 2).loss, expected.loss)


@pytest.mark.parametrize("mixing", ["tangent", "parameters"])
@pytest.mark.parametrize("with_scale", [False, True])
def test_compiled_guided_step_is_the_one_that_is_not(mixing, with_scale):
    """Though it takes the network's own velocity at r = t from the loss: float32 rounding."""
    heads = with_scale and mixing == "tangent"
    told = IMF if heads else GUIDED if with_scale else {}
    changes = {"guidance.mixing": mixing, "times.prob_equal": 0.75} | told
    found = []
    for compiled in (False, True):
        own = guided_objective(guided(**changes, **{"compute.compile": compiled}))
        terms = own.terms(own.inputs(2))
        found.append((terms.squared_error, *torch.autograd.grad(terms.loss, own.net.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_guidance_scale_is_given_where_labels_are_kept():
    labels = guided_objective(guided(**GUIDED)).labels(2)
    assert (labels.kappa[labels.dropped] == 0).all()
    assert ((labels.kappa > 0) & (labels.kappa < 7 / 8))[~labels.dropped].all()
    fixed = guided_objective(guided()).labels(2)
    assert torch.equal(labels.y, fixed.y) and fixed.kappa is None


def test_labels_are_the_images_own_where_they_are_not_dropped():
    experiment = guided()
    own, data = guided_objective(experiment), Digits().load("train")
    y, dropped, *_ = own.labels(3)
    true = data.labels[data.positions(3, 12, experiment.seed)]
    assert torch.equal(y[~dropped], true[~dropped])
    assert torch.equal(own.draw(3)[0].x, data.batch(3, 12, experiment.seed, torch.device("cpu")))


@pytest.mark.parametrize("world", [2, 3])
def test_labels_of_workers_make_up_the_single_workers(world):
    whole = guided_objective(guided(**IMF)).labels(3)
    for rank in range(world):
        part = guided_objective(guided(**IMF), Workers(rank, world)).labels(3)
        assert all(torch.equal(a, b[rank::world]) for a, b in zip(part, whole, strict=True))


def test_labels_change_no_other_number():
    plain = guided(**{"guidance": None, "model.classes": 0})
    for a, b in zip(
        guided_objective(guided()).draw(2)[0], guided_objective(plain).draw(2)[0], strict=True
    ):
        assert (a == b) if isinstance(a, int) else torch.equal(a, b)
