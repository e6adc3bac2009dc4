"""Landscapes of a run: training is not changed; any number of workers, any proxy."""

import io
import itertools

import pytest
import torch
from helpers.pictures import write_images
from helpers.toy import Died, dies_at, trainer

from vamf.data.digits import Digits
from vamf.data.mixtures import Mixture
from vamf.diagnostics.probe import Probe
from vamf.distributed import Workers
from vamf.flow.schedules import BetaOfTime
from vamf.presets import PRESETS
from vamf.rng import generator
from vamf.run_layout import LAST_LANDSCAPE, SUMMARY
from vamf.training.landscape_report import (
    describe_landscape,
    keep_landscape,
    last_estimates,
)
from vamf.training.loop import Session, Summary, train
from vamf.training.step.trainer import Trainer

TOY = PRESETS["toy"].override(
    {
        "model.hidden": (16, 16),
        "model.embedding": 8,
        "batch": 32,
        "steps": 20,
        "evaluation.distance.samples": 64,
        "evaluation.variance_samples": 16,
        "evaluation.gradient_batches": 2,
    }
)
DROPOUT = PRESETS["digits"].override(
    {"model.channels": 8, "model.blocks": 1, "model.dropout": 0.3, "batch": 8, "steps": 20}
)
TINY_EVALUATION = {
    "evaluation.distance.samples": 40,
    "evaluation.variance_samples": 4,
    "evaluation.gradient_batches": 2,
}
PLAN = Probe(pairs=2, bins=3)


def weights(own):
    return torch.cat([p.detach().flatten() for p in own.net.parameters()])


@pytest.mark.parametrize("experiment", [TOY, DROPOUT], ids=["toy", "dropout"])
def test_probing_leaves_training_bit_identical(experiment):
    plain, probed = trainer(experiment), trainer(experiment)
    for _ in range(2):
        plain.train_step()
        probed.probe(PLAN)
        probed.train_step()
    assert (weights(plain) == weights(probed)).all()
    first, second = (own.probe(PLAN).tables for own in (plain, probed))
    assert torch.equal(first.covariance, second.covariance)


class Part(Workers):
    """One of several workers, whose sums are left to the test."""

    def sum(self, tensor):
        return tensor


def test_workers_share_the_pairs():
    plan = Probe(pairs=5, bins=2)
    whole = trainer(TOY).probe(plan).tables
    dataset = TOY.data.load("train")
    parts = [Trainer(TOY, dataset, Part(rank, 2)).probe(plan).tables for rank in range(2)]
    for name in ("covariance", "crossed", "conditional", "scalars", "first"):
        assert torch.equal(getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name))


def test_a_run_with_probes_logs_the_landscape(tmp_path):
    logged, pictures = {}, []
    session = Session(
        directory=tmp_path,
        log=lambda metrics, step: logged.setdefault(step, {}).update(metrics),
        picture=lambda path, step: pictures.append((path.parent.name, step)),
    )
    train(TOY.override({"probe.every": 10, "probe.pairs": 2}), session)
    for step in (10, 20):
        assert {"beta_star/gradient/mse", "beta_star/conditional/mse_se"} <= set(logged[step])
        assert ("landscape", step) in pictures
        assert (tmp_path / "landscape" / f"step_{step:08d}.json").exists()


@pytest.mark.parametrize("death", [None, 19, 20], ids="died at {}".format)
def test_a_runs_summary_has_its_last_landscape_whichever_step_it_is_of(death, tmp_path):
    """Step 18 has the last landscape, step 20 the evaluation; it is resumed at 19 or at 20."""
    logged, measured, changes = {}, [], {"probe.every": 6, "probe.pairs": 2, "checkpoint.every": 19}
    experiment = TOY.override({**changes, "evaluation.gradient_batches": 3})

    def attempt(report=lambda progress: None):
        return train(
            experiment,
            Session(
                directory=tmp_path,
                log=lambda metrics, step: logged.setdefault(step, {}).update(metrics),
                picture=lambda path, step: measured.append((path.parent.name, step)),
                report=report,
            ),
        )

    if death is not None:
        with pytest.raises(Died):
            attempt(dies_at(death))
    summary = attempt()
    assert [step for kind, step in measured if kind == "landscape"] == [6, 12, 18]
    names = [name for name in logged[18] if name.startswith(("beta_star/", "probe/"))]
    expected = {name: logged[18][name] for name in names if not name.endswith("_se")}
    expected |= {
        name: value
        for name, value in logged[20].items()
        if name.startswith("eval/") and not name.endswith("_se")
    }
    assert "beta_star/gradient/mse" in expected and "beta_star/gradient/mse" not in logged[20]
    assert {name: found.value for name, found in summary.metrics.items()} == expected
    error = logged[18]["beta_star/gradient/mse_se"]
    assert summary.metrics["beta_star/gradient/mse"].error == error
    assert Summary.load(tmp_path / SUMMARY).metrics == summary.metrics


def test_a_last_landscape_of_a_later_step_or_damaged_is_none(tmp_path):
    assert last_estimates(tmp_path, 9) == {}
    keep_landscape(trainer(TOY).probe(PLAN), tmp_path, 6)
    assert last_estimates(tmp_path, 6) == last_estimates(tmp_path, 9) != {}
    assert last_estimates(tmp_path, 5) == {}
    for damaged in ("", "[]", '{"step": 6}', '{"step": 6, "estimates": {"a": 1}}'):
        (tmp_path / LAST_LANDSCAPE).write_text(damaged)
        assert last_estimates(tmp_path, 6) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"proxy": "online"},
        {"proxy": "head", "model.velocity_head": True},
        {"proxy": "oracle"},
        {"proxy": "oracle", "data.kind": "Mixture", "data.dim": 4},
        {"proxy": "oracle", "data.kind": "Digits", "evaluation.distance.kind": "FrechetDistance"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_proxy_trains_and_probes(changes):
    own = trainer(TOY.override({**changes, "beta.value": 0.5}))
    before = weights(own)
    for _ in range(2):
        own.train_step()
    assert (weights(own) != before).any() and own.collect()["loss/train"] > 0
    text = describe_landscape(own.probe(PLAN))
    assert "beta_star/gradient/mse" in text and "t in [0.67, 1)" in text


def test_the_head_learns_the_velocity_and_is_the_tangent():
    own = trainer(TOY.override({"proxy": "head", "model.velocity_head": True, "beta.value": 1.0}))
    own.train_step()
    assert own.net.velocity_head.weight.grad.abs().sum() > 0
    z, t = torch.randn(5, 2, generator=generator("head")), torch.full((5,), 0.5)
    torch.testing.assert_close(own.v_hat(z, t), own.net.velocity(z, t).detach())
    assert not own.v_hat(z, t).requires_grad


def test_with_the_oracle_for_proxy_there_is_no_bias():
    own = trainer(TOY.override({"proxy": "oracle", "beta.value": 0.5}))
    for _ in range(5):
        own.train_step()
    landscape = own.probe(PLAN)
    bias, _ = landscape.curve("conditional/bias2", torch.tensor([0.0, 1.0]))
    variance, _ = landscape.curve("conditional/trace", torch.tensor([0.0, 1.0]))
    assert bias[1] < 1e-9 * variance[0]
    assert landscape.estimates()["probe/bias2"].value == pytest.approx(0, abs=1e-9)


def test_a_reference_run_is_a_frozen_proxy(tmp_path):
    flow = TOY.override({"times.prob_equal": 1.0, "seed": 5})
    train(flow, Session(directory=tmp_path))
    taught = trainer(TOY.override({"proxy": "reference", "reference": str(tmp_path), "seed": 1}))
    z, t = torch.randn(4, 2, generator=generator("reference")), torch.full((4,), 0.3)
    before = taught.v_hat(z, t)
    taught.train_step()
    assert torch.equal(taught.v_hat(z, t), before)
    other = {"proxy": "reference", "reference": str(tmp_path), "data.name": "two_moons"}
    with pytest.raises(ValueError, match="trained on other data"):
        trainer(TOY.override(other))
    with pytest.raises(ValueError, match="no checkpoint in"):
        trainer(TOY.override({"proxy": "reference", "reference": str(tmp_path / "none")}))


def test_a_reference_with_relative_paths_is_of_the_same_data(tmp_path, monkeypatch):
    """As earlier versions saved them; this run's are absolute, for processes elsewhere."""
    write_images(tmp_path / "data", Digits().load("train").images[:30, 0].numpy())
    folder = {"data.kind": "ImageFolder", "data.size": 8, "data.channels": 1, "data.root": "data"}
    monkeypatch.chdir(tmp_path)
    flow = DROPOUT.override({**folder, "times.prob_equal": 1.0, "steps": 1, **TINY_EVALUATION})
    train(flow, Session(directory=tmp_path / "run"))
    taught = {"proxy": "reference", "reference": str(tmp_path / "run")}
    assert trainer(flow.located().override(taught)).v_hat is not None


def test_a_ddpm_is_no_velocity(tmp_path):
    """Its network predicts noise: it is no proxy, and has no landscape."""
    changes = {"ddpm.kind": "DDPM", "times.prob_equal": 1.0, "times.kind": "UniformTimes"}
    sampled = {"evaluation.sampler": "ddim", "evaluation.sampling_steps": 2}
    ddpm = TOY.override({**changes, **sampled})
    train(ddpm, Session(directory=tmp_path))
    taught = {"proxy": "reference", "reference": str(tmp_path)}
    with pytest.raises(ValueError, match=r"must have learnt a velocity; .* is a DDPM"):
        trainer(TOY.override(taught))
    for measured in (lambda: trainer(ddpm).probe(PLAN), lambda: trainer(ddpm).ratios(8)):
        with pytest.raises(ValueError, match="needs a network that learns a velocity; got a DDPM"):
            measured()


ADAPTIVE = TOY.override(
    {
        "beta.kind": "AdaptiveBeta",
        "beta.begin": 2,
        "beta.every": 3,
        "beta.pairs": 2,
        "beta.bins": 2,
        "beta.start": 0.5,
        "beta.low": 0.2,
        "beta.high": 0.9,
    }
)


def test_an_adaptive_beta_moves_within_its_bounds_and_resumes_bit_for_bit():
    whole, times, seen = trainer(ADAPTIVE), torch.tensor([0.2, 0.8]), []
    for _ in range(9):
        whole.train_step()
        seen.append(whole.beta(times))
        if whole.step == 4:
            file = io.BytesIO()
            torch.save(whole.state_dict(), file)
            resumed = trainer(ADAPTIVE)
            file.seek(0)
            resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(5):
        resumed.train_step()
    assert (weights(whole) == weights(resumed)).all()
    assert torch.equal(whole.beta(times), resumed.beta(times))
    assert torch.equal(seen[1], torch.full((2,), 0.5)) and not torch.equal(seen[2], seen[1])
    assert all(((b >= 0.2) & (b <= 0.9)).all() for b in seen)
    assert all(torch.equal(a, b) for a, b in itertools.pairwise(seen[2:5]))


def test_a_beta_of_time_that_is_constant_is_a_constant_beta():
    constant = TOY.override({"beta.value": 0.4})
    of_time = {f"beta.{name}": 0.4 for name in ("at_data", "at_half", "at_noise")}
    one, other = trainer(constant), trainer(TOY.override({"beta.kind": "BetaOfTime", **of_time}))
    for own in (one, other):
        own.train_step()
    assert (weights(one) == weights(other)).all()


def test_a_beta_of_time_is_linear_between_its_values():
    rule = BetaOfTime(at_data=0.0, at_half=1.0, at_noise=0.5)
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    torch.testing.assert_close(rule.at(0.3, t), torch.tensor([0.0, 0.5, 1.0, 0.75, 0.5]))
    own = trainer(TOY.override({"beta.kind": "BetaOfTime", "beta.at_noise": 0.8}))
    own.train_step()
    assert own.collect()["loss/train"] > 0


def test_an_oracle_where_there_is_none_is_refused():
    for data in ({"data.name": "two_moons"}, {"data.kind": "Mixture", "data.centres": "redrawn"}):
        with pytest.raises(ValueError, match="needs data with a closed-form velocity"):
            TOY.override({"proxy": "oracle", **data})
    with pytest.raises(ValueError, match="two_moons has no closed-form velocity"):
        TOY.override({"data.name": "two_moons"}).data.velocity()
    with pytest.raises(ValueError, match="fixed"):
        Mixture(centres="redrawn").velocity()
