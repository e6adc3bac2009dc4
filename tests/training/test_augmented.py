"""Runs on augmented images: the same on any number of workers, resumed, and averaged sparsely."""

from dataclasses import replace

import pytest
import torch
from helpers.pictures import write_images

from vamf.data.augment import Augmentation
from vamf.data.digits import Digits
from vamf.data.image_folder import ImageFolder
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.experiment_settings import Checkpoints, Evaluation
from vamf.flow.guidance import Guidance
from vamf.flow.tangents import boundary_velocity
from vamf.flow.times import ClippedLogitNormalTimes
from vamf.metrics.distances import FrechetDistance
from vamf.models.unet import UNetConfig
from vamf.rng import generator
from vamf.training.loop import Session, checkpoints, train
from vamf.training.step.objective import Objective
from vamf.training.step.trainer import Trainer

EXPERIMENT = Experiment(
    data=Digits(),
    model=UNetConfig(
        channels=4, multipliers=(1,), blocks=1, attention=(), augmentations=6, dropout=0.0
    ),
    augment=Augmentation(p=0.5, mirror=True),
    times=ClippedLogitNormalTimes(),
    batch=12,
    steps=4,
    log_every=1,
    evaluation=Evaluation(
        every=4,
        distance=FrechetDistance(samples=40),
        variance_samples=4,
        gradient_batches=2,
    ),
    checkpoint=Checkpoints(every=1, keep=10),
)
CONDITIONAL = replace(
    EXPERIMENT, model=replace(EXPERIMENT.model, classes=10), guidance=Guidance(cfg_kappa=0.5)
)


COMPILED = {"compute.compile": True}


def objective(experiment=EXPERIMENT, workers=Workers()):  # noqa: B008
    torch.manual_seed(0)
    data = experiment.data.load("train")
    net = experiment.model.build(data.shape)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) / 4)
    return Objective(experiment, net, boundary_velocity(net), data, workers)


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_workers_make_up_the_single_workers_images(world):
    whole, strengths = objective().draw(3)[0].x, objective().strengths(3)
    for rank in range(world):
        share = objective(workers=Workers(rank, world))
        torch.testing.assert_close(share.draw(3)[0].x, whole[rank::world], rtol=0, atol=1e-6)
        assert torch.equal(share.strengths(3), strengths[rank::world])


def test_augmentation_changes_no_other_number():
    plain = replace(EXPERIMENT, augment=None, model=replace(EXPERIMENT.model, augmentations=0))
    with_it, without = (objective(e).draw(2)[0] for e in (EXPERIMENT, plain))
    assert all(torch.equal(getattr(with_it, n), getattr(without, n)) for n in ("e", "r", "t"))
    assert not torch.equal(with_it.x, without.x)
    assert torch.equal(with_it.x, EXPERIMENT.augment(without.x, objective().strengths(2)))


@pytest.mark.parametrize("experiment", [EXPERIMENT, CONDITIONAL], ids=["plain", "classes"])
def test_network_and_proxy_receive_the_augment_labels(experiment):
    """Both receive the augmentation of each sample that they evaluate."""
    seen = []
    own = objective(experiment)
    forward = own.net.forward

    def spy(z, r, t, y=None, kappa=None, interval=None, augment_labels=None):
        seen.append(augment_labels)
        return forward(z, r, t, y, kappa, interval, augment_labels)

    own.net.forward = spy
    own(own.inputs(1))
    augment_labels = experiment.augment.conditioning(own.strengths(1))
    assert torch.equal(own.augment_labels(1), augment_labels)
    assert len(seen) > 1
    assert all(
        torch.equal(part.detach(), augment_labels[len(augment_labels) - len(part) :])
        for part in seen
    )


def test_a_compiled_step_receives_the_augment_labels_too():
    eager, compiled = objective(CONDITIONAL), objective(CONDITIONAL.override(COMPILED))
    for module in (eager, compiled):
        module.eval()
    fast, plain = (module(module.inputs(1)).loss for module in (compiled, eager))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=0)  # float32


@pytest.mark.parametrize("experiment", [EXPERIMENT, CONDITIONAL], ids=["plain", "classes"])
def test_a_resumed_run_is_the_uninterrupted_one(experiment, tmp_path):
    train(experiment, Session(directory=tmp_path / "whole"))
    train(replace(experiment), Session(directory=tmp_path / "again"))
    folder = checkpoints(experiment, tmp_path / "again")
    for later in folder.all()[2:]:
        for file in later.path.iterdir():
            file.unlink()
        later.path.rmdir()
    train(experiment, Session(directory=tmp_path / "again"))
    whole, again = (
        checkpoints(experiment, tmp_path / name).latest().load() for name in ("whole", "again")
    )
    for part in ("net", "ema"):
        assert all(torch.equal(again[part][name], w) for name, w in whole[part].items())


def test_a_streamed_folder_trains_as_one_in_memory(tmp_path):
    """Bit for bit; and logs the share of its time that it waited."""
    write_images(tmp_path / "data", Digits().load("train").images[:30, 0].numpy())
    results, logged = [], []
    for memory_gb in (8.0, 0.0):
        data = ImageFolder(
            root=tmp_path / "data", size=8, channels=1, crop="exact", memory_gb=memory_gb
        )
        experiment = replace(EXPERIMENT, data=data, steps=2)
        directory = tmp_path / str(memory_gb)
        logged.append({})
        log = logged[-1]
        train(experiment, Session(directory=directory, log=lambda f, _, log=log: log.update(f)))
        results.append(checkpoints(experiment, directory).latest().load()["net"])
    assert all(torch.equal(results[1][name], w) for name, w in results[0].items())
    assert "time/waiting" not in logged[0] and 0 <= logged[1]["time/waiting"] <= 1


def test_the_average_moves_only_when_it_is_due():
    trainer = Trainer(replace(EXPERIMENT, ema_every=3, ema=0.5), Digits().load("train"))
    moved, before = [], trainer.ema.module.conv_in.weight.clone()
    for _ in range(6):
        trainer.train_step()
        moved.append(not torch.equal(trainer.ema.module.conv_in.weight, before))
        before = trainer.ema.module.conv_in.weight.clone()
    assert moved == [False, False, True, False, False, True]


def test_clipped_times():
    """6.65 % of the pairs with r < t before clipping lie on r = t after it (normal difference)."""
    times = ClippedLogitNormalTimes()
    r, t = times(40_000, generator("clipped"))
    assert (r <= t).all() and r.min() > 0 and t.max() < 1
    logit = torch.logit(t.double())
    assert abs(logit.mean() + 0.6) < 5 * 1.6 / 200 and abs(logit.std() - 1.6) < 0.03
    # P(r > t) = Phi((-4 + 0.6) / (1.6 sqrt 2)) = Phi(-1.503)
    assert abs((r == t).double().mean() - 0.0665) < 5 * (0.0665 * 0.9335 / 40_000) ** 0.5
    with pytest.raises(ValueError, match="t_std and r_std must be positive"):
        ClippedLogitNormalTimes(r_std=0.0)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model.augmentations": 0}, "augment and model.augmentations go together"),
        ({"augment.rotate": True}, "gives 8 numbers, and a network for 6"),
        ({"augment": None}, "gives 0 numbers, and a network for 6"),
        ({"proxy": "oracle"}, "augment needs a proxy that takes augment labels; got oracle"),
        ({"ema_every": 0}, "ema_every must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        EXPERIMENT.override(changes)
