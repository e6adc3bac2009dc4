"""A run of several stages: each is trained as alone, goes on from the one before, and resumes."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny import same
from helpers.toy import TOY, after, saved, trainer

from vamf.diagnostics.adaptive import AdaptiveBeta
from vamf.experiment import Experiment
from vamf.experiment_settings import Optimiser
from vamf.experiment_stages import Stage
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss, AlphaSchedule
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.schedules import BetaSchedule
from vamf.flow.times import UniformTimes
from vamf.training.evaluation import evaluate
from vamf.training.loop import Session, train

FLOW = Stage(
    share=0.4,
    times=UniformTimes(prob_equal=1.0),
    beta=BetaSchedule(),
    optim=Optimiser(lr=2e-2, beta2=0.95, warmup=2, final=1.0),
)
ALONE = replace(
    TOY,
    times=UniformTimes(prob_equal=0.25),
    beta=BetaSchedule(value=1.0),
    proxy="online",
    optim=Optimiser(lr=1e-2, final=1.0),
    steps=10,
)
STAGED = replace(ALONE, stages=(FLOW,))
THREE = replace(
    ALONE,
    beta=BetaSchedule(value=0.0, shape="linear", end=1.0),
    optim=Optimiser(lr=1e-2, warmup=2),
    stages=(
        replace(FLOW, share=0.3),
        Stage(share=0.4, loss=AlphaFlowLoss(alpha=AlphaSchedule()), proxy="ema"),
    ),
)


def test_the_first_stage_is_a_run_of_its_own():
    alone = replace(ALONE, times=FLOW.times, beta=FLOW.beta, optim=FLOW.optim, stages=(), steps=4)
    assert same(after(4, trainer(STAGED)).state_dict(), after(4, trainer(alone)).state_dict())


def test_the_objective_goes_on_from_the_weights_average_and_moments_of_the_stage_before():
    staged = after(4, trainer(STAGED))
    alone = trainer(ALONE)  # nothing of it moves over training
    alone.load_state_dict(saved(staged))
    assert same(after(6, staged).state_dict(), after(6, alone).state_dict())
    assert not same(staged.net.state_dict(), after(10, trainer(ALONE)).net.state_dict())


@pytest.mark.parametrize("step", [2, 3, 5, 7, 9])
@pytest.mark.parametrize("fast", [False, True])
def test_it_resumes_bit_for_bit_within_stages_and_between_them(step, fast):
    experiment = THREE
    if fast:  # alpha-Flow is not compiled
        experiment = STAGED.override({"compute.compile": True, "compute.precision": "bfloat16"})
    first = after(step, trainer(experiment))
    again = trainer(experiment)
    again.load_state_dict(saved(first))
    whole = after(10, trainer(experiment)).state_dict()
    assert same(after(10 - step, again).state_dict(), whole)


def test_what_moves_over_training_begins_anew_in_each_stage():
    own, rates, betas, alphas, stages = trainer(THREE), [], [], [], []
    t = torch.tensor([0.5])
    for step in range(10):
        own.train_step()
        group = own.optimiser.param_groups[0]
        rates.append((group["lr"], group["betas"][1]))
        betas.append(own.objective.beta(step, t))
        alphas.append(own.collect().get("schedule/alpha"))
        stages.append(own.stage)
    assert stages == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    flow = [(1e-2, 0.95), (2e-2, 0.95), (2e-2, 0.95)]
    middle = [(5e-3, 0.999), (1e-2, 0.999), (1e-2, 0.999), (1e-2 * (0.01 + 1) / 2, 0.999)]
    last = [(5e-3, 0.999), (1e-2, 0.999), (1e-2, 0.999)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([*flow, *middle, *last]))
    expected = [0, 0, 0, 0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 3, 2 / 3]
    torch.testing.assert_close(torch.tensor(betas), torch.tensor(expected))
    schedule = AlphaSchedule()
    assert alphas[:3] == alphas[7:] == [None] * 3
    assert alphas[3:7] == [schedule(k / 4) for k in range(4)]


def test_evaluations_measure_the_objective_itself_in_all_stages():
    staged = after(2, trainer(replace(THREE, stages=(FLOW,))))
    alone = trainer(replace(THREE, stages=()))
    alone.load_state_dict(saved(staged) | {"step": 0})  # beta = 0
    assert evaluate(staged) == evaluate(alone)


def test_adaptive_beta_adapts_after_the_stages():
    rule = AdaptiveBeta(every=3, begin=3, pairs=2, bins=2)
    own = after(7, trainer(replace(STAGED, beta=rule)))
    assert own.objective.adapted.estimates == 0
    assert after(1, own).objective.adapted.estimates == 1


def test_the_loop_logs_the_stage(tmp_path):
    seen = {}
    session = Session(directory=tmp_path, log=lambda values, step: seen.update({step: values}))
    train(STAGED, session)
    assert {step: values["schedule/stage"] for step, values in seen.items()} == {
        2: 0,
        4: 0,
        6: 1,
        8: 1,
        10: 1,
    }


def test_settings_of_stages_have_dotted_names_and_are_saved(tmp_path):
    THREE.save(tmp_path / "experiment.json")
    assert Experiment.load(tmp_path / "experiment.json") == THREE
    flat = THREE.flatten()
    assert flat["stages.0.optim.lr"] == 2e-2
    assert flat["stages.1.loss.kind"] == "AlphaFlowLoss"
    assert ALONE.flatten()["stages"] == []
    changes = {
        "stages.0.times.prob_equal": 1.0,
        "stages.0.share": 0.4,
        "stages.0.times.kind": "UniformTimes",
    }
    added = ALONE.override(changes)
    assert added == replace(ALONE, stages=(Stage(share=0.4, times=UniformTimes(prob_equal=1.0)),))
    assert added.override({"stages.0.share": 0.5}).stages[0].share == 0.5
    assert added.override({"stages": []}) == ALONE
    whole = [{"share": 0.4, "times": {"kind": "UniformTimes", "prob_equal": 1.0}}]
    assert ALONE.override({"stages": whole}) == added


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stages.1.proxy": "ema"}, r"stages\.1\.share must be set; got none"),
        ({"stages.0.share": 1.0}, r"a stage's share must lie in \(0, 1\); got 1.0"),
        ({"stages.1.share": 0.7}, "sum of shares must be less than 1; got 0.4, 0.7 of 10 steps"),
        ({"stages.0.share": 0.04}, "must have a step.*got 0.04 of 10 steps"),
        ({"steps": 1}, "must have a step.*got 0.4 of 1 steps"),
        ({"stages.2.share": 0.1}, "a list's item must be 0 to 1; got '2'"),
        ({"stages.first.share": 0.1}, "a list's item must be 0 to 1; got 'first'"),
        ({"stages.0": 0.1}, "'stages.0': set the list whole, or a field of an item"),
        ({"stages.0.shares": 0.1}, "unknown setting 'stages.0.shares'; did you mean 'share'"),
        ({"stages.0.lr": 0.1}, "unknown setting 'stages.0.lr'"),
        (
            {"stages.0.proxy": "oracle", "data.name": "two_spirals"},
            "stages.0: the proxy oracle needs",
        ),
        ({"stages.0.loss.kind": "DDPM"}, "stages.0: a DDPM and the samplers"),
        ({"stages.0.loss.kind": "SemigroupLoss", "stages.0.beta.value": 1}, "stages.0: beta must"),
        ({"stages.0.proxy": "reference"}, "stages.0: the proxy reference takes a checkpoint"),
    ],
)
def test_stages_that_cannot_be_trained_are_refused_in_one_line(changes, expected):
    with pytest.raises(ValueError, match=expected) as error:
        STAGED.override(changes)
    assert "\n" not in str(error.value)


def test_a_stage_inherits_no_adaptive_beta():
    with pytest.raises(ValueError, match=r"only the experiment itself can adapt beta.*stages\.0"):
        replace(STAGED, beta=AdaptiveBeta(), stages=(Stage(share=0.4),))


def test_a_loss_of_ones_own_keeps_its_name_in_a_stage():
    stage = Stage(share=0.5, loss=MeanFlowLoss())
    assert replace(ALONE, stages=(stage,)).to_dict()["stages"][0]["loss"]["kind"] == "MeanFlowLoss"
    found = ALONE.override(
        {"stages.0.share": 0.5, "stages.0.loss.kind": "jobs/examples/shapes.py:WithBoundary"}
    )
    kind = found.to_dict()["stages"][0]["loss"]["kind"]
    assert kind.endswith("shapes.py:WithBoundary")
    assert Experiment.from_dict(found.to_dict()) == found
