"""Training, evaluation and probes on couplings: each sample has its own noise, all else stays."""

import pytest
import torch
from helpers.couplings import POINTS, Flow, digits_couplings, write_couplings
from helpers.tiny import TINY, same
from helpers.toy import after, saved, trainer

from jobs import couple
from vamf.data.digits import Digits
from vamf.data.toys import Toy
from vamf.diagnostics.probe import Probe
from vamf.diagnostics.ratios import curvature
from vamf.diagnostics.variance import evaluation_draws, sample_losses
from vamf.distributed import Workers
from vamf.flow.tangents import boundary_velocity
from vamf.inference.load import load_trainer
from vamf.inference.measure import anchors
from vamf.rng import generator
from vamf.training.evaluation import loss_variance
from vamf.training.landscape_probe import probe_ratios
from vamf.training.loop import Session, train

CPU = torch.device("cpu")
SCALE = 0.25


def straight(z, t):
    """u(z, r, t) of pairs x = SCALE e, at every r: z = ((1 - t) SCALE + t) e, and u = e - x."""
    return (1 - SCALE) / ((1 - t) * SCALE + t)[:, None] * z


def coupled(experiment, root, **changes):
    return experiment.override({"data.kind": "Couplings", "data.root": str(root)} | changes)


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """Couplings of the exact flow of N(0, SCALE^2): x = SCALE e, without rounding."""
    root = tmp_path_factory.mktemp("gaussian") / "pairs"
    e = torch.randn(64, 2, generator=generator("gaussian"))
    write_couplings(root, torch.stack([SCALE * e, e], dim=1), Toy())
    return root


def test_of_an_exact_flow_the_loss_has_no_variance_and_the_paths_no_curvature(gaussian):
    """e - x is a function of z and t, whatever beta is; with independent noise it is not."""
    u, on_pairs = Flow(straight), coupled(POINTS, gaussian)
    x, e = (part.double() for part in on_pairs.data.load("test").draw_pairs(64, generator(0)))
    for beta in (0.0, 0.5, 1.0):
        losses = sample_losses(u, evaluation_draws(x, e, 0.7), beta, boundary_velocity(u))
        assert losses.max() < 1e-28  # rounding of numbers of order 1, squared
    assert max(curvature(u, x, e, 0.7, gap)[0] for gap in (0.01, 0.45)) < 1e-28
    given = u, boundary_velocity(u), 0.0
    assert loss_variance(*given, on_pairs, Workers())["loss_variance"].value < 1e-24
    assert loss_variance(*given, POINTS, Workers())["loss_variance"].value > 1
    ratios = probe_ratios(on_pairs, u, CPU, 16)
    assert max(value for name, (value, _) in ratios.items() if "curvature" in name) < 1e-12
    assert ratios["kappa/t0.7"][0] > -1


@pytest.fixture
def digits(tmp_path):
    return tmp_path / "pairs", digits_couplings(tmp_path / "pairs")


def test_times_are_drawn_as_without_couplings_and_the_noise_is_the_pairs(digits):
    root, pairs = digits
    plain, own = (trainer(e).objective for e in (TINY, coupled(TINY, root)))
    for step in range(3):
        (before, uniform), (draws, same_uniform) = plain.draw(step), own.draw(step)
        assert torch.equal(before.r, draws.r) and torch.equal(before.t, draws.t)
        assert before.n_equal == draws.n_equal and torch.equal(uniform, same_uniform)
        for x, e in zip(draws.x, draws.e, strict=True):
            (k,) = (pairs[:, 0] == x).flatten(1).all(1).nonzero().flatten().tolist()
            assert torch.equal(pairs[k, 1], e)


@pytest.mark.parametrize("world", [2, 3])
def test_each_worker_takes_its_own_pairs(world, gaussian):
    experiment = coupled(POINTS, gaussian)
    whole, _ = trainer(experiment).objective.draw(1)
    for rank in range(world):
        share, _ = trainer(experiment, Workers(rank, world)).objective.draw(1)
        expected = whole.every(world, rank)
        assert all(torch.equal(a, b) for a, b in zip(share[:4], expected[:4], strict=True))
        torch.testing.assert_close(share.x, SCALE * share.e, rtol=0, atol=0)


def test_micro_batches_have_the_gradient_of_the_batch(gaussian):
    whole, parts = (trainer(coupled(POINTS, gaussian, **{"compute.accumulate": k})) for k in (1, 3))
    for one in (whole, parts):
        one.train_step()
    for a, b in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_is_the_one_that_was_never_interrupted(gaussian):
    experiment = coupled(POINTS, gaussian)
    second = trainer(experiment)
    second.load_state_dict(saved(after(2, trainer(experiment))))
    assert same(after(2, second).state_dict(), after(4, trainer(experiment)).state_dict())


def test_a_flow_is_learnt_coupled_and_learnt_again(tmp_path, capsys):
    """On points, from a run to a run on its pairs, their probe, and pairs of the second run."""
    flow, again = tmp_path / "flow", tmp_path / "again"
    settings = {"times.kind": "UniformTimes", "times.prob_equal": 1.0}
    for folder in (flow, again):
        folder.mkdir()
    train(POINTS.override(settings), Session(directory=flow))
    for run, out in ((flow, "pairs"), (again, "more")):
        if run == again:
            experiment = coupled(POINTS, tmp_path / "pairs", init=str(flow))
            train(experiment, Session(directory=again))
        words = ["--count", "24", "--steps", "2", "--out", str(tmp_path / out)]
        couple.main([str(run), *words])
    assert "data.root=" in capsys.readouterr().out
    assert coupled(POINTS, tmp_path / "more").original == Toy()
    probed = load_trainer(again, CPU, {})
    landscape = probed.probe(Probe(pairs=2, bins=1))
    assert "gradient/mse" in landscape.names and "conditional/mse" not in landscape.names
    assert len(probed.ratios(4)) > 20


@pytest.mark.slow  # a U-Net, a classifier's features
def test_labelled_images_are_compared_with_the_originals(digits):
    """With guidance: the labels are those of the pairs, the distance that of the digits."""
    labelled = {"guidance.omega": 1, "model.classes": 10, "steps": 2, "evaluation.every": 2}
    logged = {}
    folder = digits[0].parent / "run"
    folder.mkdir()
    experiment = coupled(TINY, digits[0], **labelled)
    train(experiment, Session(directory=folder, log=lambda values, _: logged.update(values)))
    key = experiment.evaluation.distance.key
    assert f"eval/{key}" in logged and "eval/loss_variance" in logged
    assert experiment.reference_images == Digits()
    found = anchors(experiment, Workers())
    assert found == anchors(TINY, Workers()) and "real test images" in found
