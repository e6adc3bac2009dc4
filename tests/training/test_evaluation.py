"""Evaluation on fixed noise: the same for any chunking and any number of workers."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.group import member
from torch.nn.parallel import DistributedDataParallel

from vamf.data.digits import Digits
from vamf.data.toys import Toy
from vamf.diagnostics.variance import TIMES
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.experiment_settings import Checkpoints, Evaluation
from vamf.flow.guidance import Guidance
from vamf.flow.objectives.meanflow import Anchor, MeanFlowLoss
from vamf.flow.objectives.terms import AdaptiveWeight
from vamf.flow.schedules import BetaSchedule
from vamf.flow.times import UniformTimes
from vamf.metrics.distances import FrechetDistance, SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.rng import generator
from vamf.training.evaluation import (
    classes,
    distance,
    evaluate,
    generate_from,
    gradient_variance,
    loss_variance,
    noise,
)
from vamf.training.loop import Session, checkpoints, train
from vamf.training.step.objective import draw
from vamf.training.step.trainer import Trainer

CPU = torch.device("cpu")
TOY = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(16,), embedding=4),
    times=UniformTimes(prob_equal=0.3),
    beta=BetaSchedule(value=0.4),
    loss=MeanFlowLoss(weight=AdaptiveWeight(p=0.5), anchor=Anchor(weight=0.5)),
    batch=8,
    steps=4,
    evaluation=Evaluation(
        distance=SlicedWasserstein(samples=16, directions=4, repetitions=2),
        variance_samples=10,
        gradient_batches=5,
    ),
)


def net(z, r, t):
    """A smooth u on points, without parameters."""
    return torch.sin(z) * (1 + r - t * t)[:, None]


def v_hat(z, t):
    return torch.cos(z) * t[:, None]


class Part(Workers):
    """One of several workers; it keeps the tensors that it would sum over all workers."""

    def sum(self, tensor):
        self.__class__.kept = tensor.clone()
        return tensor


def trained(experiment=TOY, steps=2):
    own = Trainer(experiment, experiment.data.load("train"))
    for _ in range(steps):
        own.train_step()
    return own


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_noise_depends_on_the_index_alone(shape):
    whole = noise(7, range(12), shape, CPU)
    assert whole.shape == (12, *shape)
    for chunk in (1, 5, 12):
        parts = [noise(7, range(a, min(a + chunk, 12)), shape, CPU) for a in range(0, 12, chunk)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(noise(7, range(3, 12, 4), shape, CPU), whole[3::4])
    assert not torch.equal(noise(8, range(12), shape, CPU), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 12


def test_noise_is_standard_normal():
    """5 standard errors: of the mean sqrt(1 / n), of the variance sqrt(2 / n)."""
    values = noise(0, range(2000), (2,), CPU)
    n = values.numel()
    assert abs(values.mean()) < 5 * n**-0.5 and abs(values.var() - 1) < 5 * (2 / n) ** 0.5
    correlation = torch.corrcoef(values.T)[0, 1]
    assert abs(correlation) < 5 * 2000**-0.5


@pytest.mark.parametrize("steps", [1, 3])
def test_generated_samples_depend_on_the_index_alone(steps):
    experiment = TOY.override({"evaluation.sampling_steps": steps, "evaluation.seed": 5})
    generate = generate_from(net, experiment, (2,), CPU)
    whole = generate(range(6))
    # Elementwise functions: chunks may differ by vectorised tails, hence float32 rounding.
    torch.testing.assert_close(torch.cat([generate(range(2)), generate(range(2, 6))]), whole)
    z = noise(5, range(6), (2,), CPU)
    for i in range(steps):
        t, r = (torch.full((6,), 1 - k / steps) for k in (i, i + 1))
        z = z - net(z, r, t) / steps
    torch.testing.assert_close(whole, z)
    assert not whole.requires_grad


def test_generated_samples_have_random_classes_of_their_own():
    experiment = Experiment(
        data=Digits(),
        model=MLPConfig(hidden=(16,), embedding=4, classes=10),
        guidance=Guidance(),
        evaluation=Evaluation(seed=5),
    )

    def shows_its_class(z, r, t, y):
        return z - y.reshape(-1, 1, 1, 1)  # one step from z to z - u leaves y

    generate = generate_from(shows_its_class, experiment, (1, 2, 2), CPU)
    whole = generate(range(2000))
    y = classes(5, range(2000), 10, CPU)
    torch.testing.assert_close(whole, y.reshape(-1, 1, 1, 1).expand_as(whole).float())
    torch.testing.assert_close(generate(range(70, 80)), whole[70:80])
    # Binomial(2000, 1/10): deviation 13.4.
    assert (y.bincount(minlength=10) - 200).abs().max() < 5 * 13.4 and y.max() == 9


def direct_losses(beta, experiment):
    """|u + (t - r) du/dt - v_cond|^2 / d by central differences, in float64, (times, n)."""
    n, seed, rows, h = experiment.evaluation.variance_samples, experiment.evaluation.seed, [], 1e-5
    for row, time in enumerate(TIMES):
        g = generator(seed, "loss_variance", row)
        x = experiment.data.load("test").draw(n, g).double()
        e = torch.randn(x.shape, generator=g).double()
        t = torch.full((n,), time, dtype=torch.float64)
        r = (t - 0.25).clamp_min(0)
        z, v_cond = x + time * (e - x), e - x
        v = (1 - beta) * v_cond + beta * v_hat(z, t)
        du_dt = (net(z + h * v, r, t + h) - net(z - h * v, r, t - h)) / (2 * h)
        residual = net(z, r, t) + (t - r)[:, None] * du_dt - v_cond
        rows.append(residual.square().sum(1) / 2)
    return torch.stack(rows)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_loss_variance_against_a_direct_computation(beta):
    (measured,) = loss_variance(net, v_hat, beta, TOY, Workers()).values()
    losses = direct_losses(beta, TOY)
    rows = losses.var(1)
    # float32 in the measured ones: a few 1e-7, and what cancels in a variance.
    assert measured.value == pytest.approx(rows.mean().item(), rel=1e-5)
    m4 = (losses - losses.mean(1, keepdim=True)).pow(4).mean(1)
    n = losses.shape[1]
    squares = (m4 - rows.square() * (n - 3) / (n - 1)).clamp_min(0) / n
    assert measured.error == pytest.approx(squares.sum().sqrt().item() / 5, rel=1e-5)


def test_loss_variance_does_not_depend_on_how_the_run_is_weighted():
    plain = TOY.override({"loss.weight.p": 0.0, "loss.anchor": None, "seed": 9, "batch": 16})
    assert loss_variance(net, v_hat, 0.3, plain, Workers()) == loss_variance(
        net, v_hat, 0.3, TOY, Workers()
    )


def test_loss_variance_error_covers_its_spread_over_seeds():
    """Over 300 seeds the value spreads as its error says, within a third: the errors themselves
    are noisy for 10 samples with heavy tails, so more of them are taken."""
    values, errors = [], []
    experiment = TOY.override({"evaluation.variance_samples": 64})
    for seed in range(300):
        seeded = experiment.override({"evaluation.seed": seed})
        (measured,) = loss_variance(net, v_hat, 0.3, seeded, Workers()).values()
        values.append(measured.value), errors.append(measured.error)
    spread = torch.tensor(values).std().item()
    assert torch.tensor(errors).square().mean().sqrt().item() == pytest.approx(spread, rel=1 / 3)


@pytest.mark.parametrize("world", [2, 3])
def test_loss_variance_is_summed_from_the_workers_parts(world):
    loss_variance(net, v_hat, 0.3, TOY, Part(0, 1))
    whole, parts = Part.kept, []
    for rank in range(world):
        loss_variance(net, v_hat, 0.3, TOY, Part(rank, world))
        parts.append(Part.kept)
    assert ((torch.stack(parts) != 0).sum(0) == 1).all()  # every sample belongs to one worker
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=0)  # float32


@pytest.mark.parametrize("world", [2, 3])
def test_gradient_variance_is_summed_from_the_workers_parts(world):
    own = trained()

    def kept(rank, world):
        gradient_variance(own.net, own.v_hat, 0.4, TOY, Part(rank, world))
        return Part.kept

    assert torch.equal(sum(kept(rank, world) for rank in range(world)), kept(0, 1))


@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_gradient_variance_against_a_direct_computation(beta):
    """The unweighted loss without anchor, written with a constant target."""
    own = trained()
    (measured,) = gradient_variance(own.net, own.v_hat, beta, TOY, Workers()).values()
    gradients = []
    for index in range(5):
        g = generator(TOY.evaluation.seed, "gradient_variance", index)
        draws, _ = draw(TOY, TOY.data.load("train").draw(8, g), g)
        own.net.zero_grad()
        MeanFlowLoss()(own.net, draws, beta=beta, v_hat=own.v_hat).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in own.net.parameters()]) / 2)
    stacked = torch.stack(gradients).double()
    assert measured.value == pytest.approx(stacked.var(0).mean().item(), rel=1e-5)  # float32
    assert measured.error > 0


def test_gradient_variance_falls_with_the_batch():
    """Of the mean of a batch four times as large: a quarter, within what 200 batches show.

    The trace sums many parameters whose errors go together: sqrt(2 / 199) = 10 % for one.
    """
    own = trained()
    few = TOY.override({"evaluation.gradient_batches": 200})
    values = [
        gradient_variance(own.net, own.v_hat, 0.4, few.override({"batch": batch}), Workers())[
            "gradient_variance"
        ].value
        for batch in (20, 80)  # .3 of them have r = t: whole numbers
    ]
    assert values[0] / values[1] == pytest.approx(4, rel=0.4)


def test_evaluate_measures_the_averaged_network_and_leaves_all_as_it_was():
    own = trained()
    own.net.zero_grad()
    random = torch.get_rng_state()
    weights = [p.clone() for p in (*own.net.parameters(), *own.ema.parameters())]
    metrics = evaluate(own)
    key = f"eval/{TOY.evaluation.distance.key}"
    assert set(metrics) == {
        key,
        key.replace("sw1", "sw2"),
        "eval/loss_variance",
        "eval/gradient_variance",
    }
    after = (*own.net.parameters(), *own.ema.parameters())
    assert all(torch.equal(a, b) for a, b in zip(after, weights, strict=True))
    assert all(p.grad is None for p in own.net.parameters()) and own.net.training
    assert torch.equal(torch.get_rng_state(), random)
    assert metrics == evaluate(own)
    with torch.no_grad():  # the trained network is not the one that generates
        for p in own.net.parameters():
            p.add_(1)
    again = evaluate(own)
    assert again[key] == metrics[key]
    assert again["eval/loss_variance"] == metrics["eval/loss_variance"]
    assert again["eval/gradient_variance"] != metrics["eval/gradient_variance"]


def test_beta_of_an_evaluation_is_the_coming_steps():
    moving = TOY.override({"beta.shape": "linear", "beta.value": 0.0, "beta.end": 1.0})
    own = trained(moving)
    ema = own.ema
    expected = loss_variance(ema, lambda z, t: ema(z, t, t), 0.5, moving, Workers())
    assert evaluate(own)["eval/loss_variance"] == expected["loss_variance"]


DROPOUT = replace(
    TOY.override({"loss.anchor": None}),
    data=Digits(),
    model=Experiment()
    .override(
        {"model.channels": 4, "model.multipliers": [1], "model.blocks": 1, "model.attention": []}
    )
    .model,
    evaluation=Evaluation(
        distance=FrechetDistance(samples=40), variance_samples=4, gradient_batches=3
    ),
)


def test_evaluation_repeats_itself_with_dropout():
    own = trained(DROPOUT, steps=1)
    assert own.experiment.model.dropout == 0.2
    first = gradient_variance(own.net, own.v_hat, 0.4, DROPOUT, Workers())
    assert first == gradient_variance(own.net, own.v_hat, 0.4, DROPOUT, Workers())


@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-5), ("bfloat16", 0.01)])
def test_gradient_variance_of_a_compiled_run_is_that_of_a_plain_one(precision, apart):
    """Rounding to bfloat16 changes it by far less than its standard error over three batches."""
    own = trained(DROPOUT, steps=1)
    fast = DROPOUT.override({"compute.compile": True, "compute.precision": precision})
    given = own.net, own.v_hat, 0.4
    (plain,) = gradient_variance(*given, DROPOUT, Workers()).values()
    (found,) = gradient_variance(*given, fast, Workers(), at_once=DROPOUT.batch).values()
    assert found.value == pytest.approx(plain.value, rel=apart)
    assert found.value != plain.value and plain.error > 2 * apart * plain.value


def test_distance_of_the_data_themselves_is_small():
    """A generator of real digits scores like another draw of them, noise far from it."""
    real = Digits().load("test").draw(40, generator("real"))
    measure = replace(DROPOUT.evaluation.distance, samples=40)
    scores = [
        measure(lambda i, s=s: s[list(i)], Digits(), Workers(), 0)[measure.key].value
        for s in (real, torch.randn(real.shape, generator=generator("fake")))
    ]
    assert scores[0] < scores[1] / 4


def test_distance_generates_with_the_experiments_seed_and_steps():
    """The identity u = 0 generates its noise: what arrives at the distance is known."""
    seen = []

    class Spy:
        def __call__(self, generate, source, workers, seed):
            seen.append((generate(range(3)), source, seed))
            return {}

    experiment = TOY.override({"evaluation.seed": 11})
    object.__setattr__(experiment.evaluation, "distance", Spy())
    distance(lambda z, r, t: torch.zeros_like(z), experiment, Workers())
    ((samples, source, seed),) = seen
    assert torch.equal(samples, noise(11, range(3), (2,), CPU))
    assert source == TOY.data and seed == 11


SHARED = replace(
    DROPOUT,
    model=MLPConfig(hidden=(16,), embedding=4),
    batch=8,
    steps=3,
    checkpoint=Checkpoints(every=3),
)


def work(rank, folder):
    """One of two processes of a run."""
    torch.set_num_threads(1)
    with member(rank, folder):
        workers = Workers(rank, 2)
        train(SHARED, Session(directory=folder, workers=workers, wrap=DistributedDataParallel))


@pytest.mark.slow  # two processes that each import torch
def test_two_workers_train_and_measure_as_one_does(tmp_path):
    """Sums in another order: 3 steps of Adam in float32 differ by 1e-6 of the learning rate."""
    (tmp_path / "two").mkdir()
    torch.multiprocessing.spawn(work, (tmp_path / "two",), nprocs=2)
    alone = train(SHARED, Session(directory=tmp_path / "one"))
    one, two = (checkpoints(SHARED, tmp_path / name).latest() for name in ("one", "two"))
    for name, weight in one.load()["net"].items():
        torch.testing.assert_close(two.load()["net"][name], weight, rtol=1e-3, atol=1e-5)
    for name, measured in alone.metrics.items():
        assert two.metrics()[name] == pytest.approx(measured.value, rel=1e-3)
        assert two.metrics()[f"{name}_se"] == pytest.approx(measured.error, rel=1e-2)
    assert two.metrics()["loss/train"] == pytest.approx(one.metrics()["loss/train"], rel=1e-5)
    assert math.isfinite(alone.metrics["eval/gradient_variance"].error)
