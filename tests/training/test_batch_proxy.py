"""The proxy of the step's batch: on several workers, with labels, in evaluation and probes."""

from dataclasses import replace

import pytest
import torch
from helpers import toy
from helpers.tiny import same
from helpers.toy import after, saved, trainer

from vamf.diagnostics.probe import Probe
from vamf.distributed import Workers
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.oracle import EmpiricalVelocity
from vamf.flow.schedules import BetaSchedule
from vamf.flow.times import UniformTimes
from vamf.presets import PRESETS
from vamf.training.evaluation import evaluate

TOY = replace(
    toy.TOY,
    times=UniformTimes(prob_equal=0.3),
    beta=BetaSchedule(value=0.6),
    proxy="batch",
    batch=10,
    steps=8,
)
LABELLED = PRESETS["digits"].override(
    {"proxy": "batch", "batch": 30, "model.channels": 8, "model.classes": 10, "guidance.omega": 2}
)


def gradient(loss, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def test_a_step_takes_the_velocity_of_its_batch():
    own = trainer(TOY)
    draws, _ = own.objective.draw(3)
    expected = MeanFlowLoss()(own.net, draws, beta=0.6, v_hat=EmpiricalVelocity(draws.x))
    assert torch.equal(own.objective(own.objective.inputs(3)).squared_error, expected.squared_error)


@pytest.mark.parametrize("experiment", [TOY, LABELLED], ids=["points", "labels"])
def test_the_mean_gradient_of_two_workers_is_that_of_one(experiment):
    """Both take all of the batch: a run is the same on any number of workers."""
    whole = gradient(
        (single := trainer(experiment)).objective(single.objective.inputs(2)).loss, single.net
    )
    parts = [trainer(experiment, Workers(rank, 2)) for rank in range(2)]
    mean = (
        sum(gradient(part.objective(part.objective.inputs(2)).loss, part.net) for part in parts) / 2
    )
    assert (mean - whole).norm() < 1e-5 * whole.norm()  # float32, in another order


def test_a_labelled_sample_sees_its_class_alone():
    own = trainer(LABELLED)
    inputs = own.objective.inputs(0)
    (y, dropped, *_), batch = inputs.labels, inputs.batch
    seen = {}

    class Seen(EmpiricalVelocity):
        def __call__(self, z, t, y=None, kappa=None):
            seen["y"], seen["labels"] = y, self.labels
            return super().__call__(z, t, y, kappa)

    own.objective.v_hat = Seen(batch.x, labels=batch.labels)
    own.objective.terms(inputs)
    assert torch.equal(seen["y"], y[len(y) - len(seen["y"]) :]) and dropped.any()
    assert torch.equal(seen["labels"], batch.labels) and batch.labels.max() < 10
    assert torch.equal(batch.labels[~dropped], y[~dropped])
    other = trainer(LABELLED).objective
    assert torch.equal(other.terms(inputs).squared_error, own.objective.terms(inputs).squared_error)


def test_the_compiled_step_is_the_one_that_is_not():
    found = []
    for compiled in (False, True):
        own = trainer(TOY.override({"compute.compile": compiled}))
        terms = own.objective(own.objective.inputs(2))
        found.append((terms.squared_error, gradient(terms.loss, own.net)))
    for eager, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-6)  # float32


def test_evaluation_and_probes_take_the_velocity_of_theirs():
    own = trainer(TOY)
    own.train_step()
    metrics = evaluate(own)
    assert metrics["eval/gradient_variance"].value > 0
    probed = own.probe(Probe(pairs=2, bins=2)).estimates()
    online = trainer(TOY.override({"proxy": "online"}))
    online.train_step()
    assert probed.keys() == online.probe(Probe(pairs=2, bins=2)).estimates().keys()


def test_resumed_is_never_interrupted_bit_for_bit():
    resumed = trainer(TOY)
    resumed.load_state_dict(saved(after(1, trainer(TOY))))
    assert same(after(2, resumed).state_dict(), after(3, trainer(TOY)).state_dict())


def test_augmented_images_are_refused():
    with pytest.raises(ValueError, match="augment needs a proxy that takes augment labels"):
        PRESETS["digits"].override({"proxy": "batch", "augment.p": 0.1, "model.augmentations": 6})


def test_parts_of_a_step_with_its_whole_batch_have_its_gradient():
    own = trainer(TOY)
    inputs = own.objective.inputs(2)
    whole, mean = gradient(own.objective.terms(inputs).loss, own.net), 0.0
    numbers = inputs.uniform.split(4)
    for part, uniform in zip(inputs.draws.parts(4), numbers, strict=True):
        terms = own.objective.terms(inputs._replace(draws=part, uniform=uniform))
        mean = mean + len(part.x) / 10 * gradient(terms.loss, own.net)
    assert (mean - whole).norm() < 1e-5 * whole.norm()  # float32, in another order
