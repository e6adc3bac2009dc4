"""DDPM and flow matching, trained and measured as any other run."""

from dataclasses import replace

import pytest
import torch

from vamf.data.digits import Digits
from vamf.data.toys import Toy
from vamf.diagnostics.probe import Probe
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation, Optimiser
from vamf.flow.objectives.ddpm import DDPM
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.times import UniformTimes
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.presets import PRESETS
from vamf.training import evaluation
from vamf.training.evaluation import evaluate, generate_from, protocol
from vamf.training.step.trainer import Trainer

CPU = torch.device("cpu")
FLOW = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(64, 64), embedding=16),
    times=UniformTimes(prob_equal=1.0),
    optim=Optimiser(lr=3e-3),
    ema=0.98,
    batch=256,
    steps=600,
    evaluation=Evaluation(
        distance=SlicedWasserstein(samples=512), sampler="heun", sampling_steps=10
    ),
)
DENOISING = replace(
    FLOW,
    loss=DDPM(levels=60, first=1e-3, last=0.2, clip=False),
    evaluation=replace(FLOW.evaluation, sampler="ancestral", sampling_steps=60),
)


@pytest.mark.parametrize(
    "experiment",
    [
        FLOW,
        FLOW.override({"evaluation.sampler": "euler", "evaluation.sampling_steps": 20}),
        DENOISING,
        DENOISING.override({"evaluation.sampler": "ddim", "evaluation.sampling_steps": 20}),
    ],
    ids=lambda e: e.evaluation.sampler,
)
def test_training_comes_near_the_data(experiment):
    trainer = Trainer(experiment, experiment.data.load("train"))
    key = experiment.evaluation.distance.key
    (before,) = (m.value for n, m in evaluate(trainer).items() if n == f"eval/{key}")
    for _ in range(experiment.steps):
        trainer.train_step()
    measured = evaluate(trainer)
    assert measured[f"eval/{key}"].value < min(0.5, before / 3)
    # What depends on beta a DDPM does not have.
    assert ("eval/loss_variance" in measured) == experiment.loss.learns_velocity
    assert f"-step {experiment.evaluation.sampler} samples" in protocol(experiment)


def test_ancestral_samples_depend_on_their_index_alone():
    net = Trainer(DENOISING, DENOISING.data.load("train")).ema
    generate = generate_from(net, DENOISING, (2,), CPU)
    whole = generate(range(6))
    # Matrix products of other sizes: float32 rounding.
    torch.testing.assert_close(torch.cat([generate(range(2)), generate(range(2, 6))]), whole)
    other = generate_from(net, DENOISING.override({"evaluation.seed": 1}), (2,), CPU)
    assert not torch.allclose(other(range(6)), whole)


@pytest.mark.parametrize(("experiment", "streams"), [(FLOW, 0), (DENOISING, 6)])
def test_only_ancestral_sampling_has_streams_for_fresh_noise(experiment, streams, monkeypatch):
    keys, made = [], evaluation.generator
    monkeypatch.setattr(evaluation, "generator", lambda *key: keys.append(key) or made(*key))
    net = Trainer(experiment, experiment.data.load("train")).ema
    generate_from(net, experiment, (2,), CPU)(range(6))
    assert [name for _, name, _ in keys].count("ancestral") == streams
    assert [name for _, name, _ in keys].count("noise") == 6


def test_a_ddpm_is_trained_by_two_workers_as_by_one():
    """Each worker's gradient on its share: their mean is that of the whole batch."""

    def gradient(workers):
        trainer = Trainer(DENOISING, DENOISING.data.load("train"), workers)
        trainer.objective(trainer.objective.inputs(3)).loss.backward()
        return torch.cat([p.grad.flatten() for p in trainer.net.parameters()])

    halves = [gradient(Workers(rank=rank, world=2)) for rank in range(2)]
    torch.testing.assert_close(torch.stack(halves).mean(0), gradient(Workers()))


def test_images_that_are_augmented_are_denoised_too():
    digits = replace(
        PRESETS["cifar10_ddpm"],
        data=Digits(),
        model=UNetConfig(
            channels=8, multipliers=(1,), blocks=1, attention=(), augmentations=6, dropout=0.1
        ),
        evaluation=Evaluation(sampler="ddim", sampling_steps=2),
        batch=8,
    )
    trainer = Trainer(digits, digits.data.load("train"))
    trainer.train_step()
    assert trainer.collect()["loss/per_dimension"] == pytest.approx(1, abs=0.3)  # predicts 0
    assert Experiment.from_dict(digits.to_dict()) == digits


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": replace(FLOW.evaluation, sampler="heun")}, "go together; got DDPM"),
        ({"loss": MeanFlowLoss()}, "go together; got MeanFlowLoss and ancestral"),
        ({"times": UniformTimes(prob_equal=0.5)}, "needs UniformTimes with prob_equal = 1; got"),
        ({"proxy": "online"}, "neither guidance nor probe"),
        ({"probe": Probe()}, "neither guidance nor probe"),
        (
            {"evaluation": replace(DENOISING.evaluation, sampling_steps=10)},
            "takes all 60 levels; got 10",
        ),
        (
            {"evaluation": replace(DENOISING.evaluation, sampler="ddim", sampling_steps=61)},
            "1 to 60 steps; got 61",
        ),
    ],
)
def test_what_a_ddpm_does_not_go_with_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(DENOISING, **changes)
