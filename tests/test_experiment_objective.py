"""What an objective does not go with is refused in one line when the experiment is made."""

from dataclasses import dataclass, replace

import pytest

from vamf.experiment import Experiment
from vamf.experiment_settings import Compute
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import ObjectiveRule
from vamf.presets import PRESETS

PLAIN = PRESETS["digits"].override({"beta.value": 0.0})
GUIDED = {"guidance.omega": 2.0, "model.classes": 10}
CONDITIONED = {"guidance.dropout": 0.1, "model.classes": 10}
TERMINAL = {"loss.kind": "TerminalVelocityLoss"}
DIFFERENCE = {"loss.difference.epsilon": 1e-3}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (TERMINAL | {"compute.compile": True}, r"needs loss\.stop_derivative true"),
        (TERMINAL | {"compute.checkpointing": True}, r"needs loss\.stop_derivative true, or"),
        (TERMINAL | GUIDED, r"needs loss\.boundary null with guidance"),
        ({"loss.gamma": 0.5} | GUIDED, r"loss\.gamma must be 0; got 0\.5"),
        ({"loss.gamma": 0.5, "probe.every": 5}, "a probe and an adaptive beta need .*gamma=0.5"),
        ({"loss.gamma": 0.5, "beta.kind": "AdaptiveBeta"}, "an adaptive beta need"),
        (DIFFERENCE | {"probe.every": 5}, "a probe and an adaptive beta need .*epsilon=0.001"),
        (DIFFERENCE | {"compute.precision": "tf32"}, "needs compute.precision float32; got tf32"),
        (DIFFERENCE | {"loss.trace.probes": 1}, r"loss\.trace needs the jvp"),
        ({"loss.gamma": 2.0}, r"loss\.gamma must lie in \[0, 1\]; got 2\.0"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_in_one_line(changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        PLAIN.override(changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        TERMINAL | {"compute.compile": True, "loss.stop_derivative": True},
        TERMINAL | GUIDED | {"loss.boundary": None},
        TERMINAL | CONDITIONED,
        {"loss.gamma": 1.0, "beta.value": 1.0, "proxy": "reference", "reference": "runs/a"},
        {"loss.gamma": 0.5, "loss.anchor.weight": 0.1, "compute.compile": True} | CONDITIONED,
        DIFFERENCE | {"compute.compile": True, "loss.anchor.weight": 0.1},
        {"loss.tangent_warmup": 0.1, "loss.weight.root": True, "loss.weight.p": 1.0},
        {"proxy": "batch", "beta.value": 0.5, "probe.every": 5} | GUIDED,
    ],
    ids=str,
)
def test_what_goes_together_is_itself_after_a_file(changes):
    experiment = PLAIN.override(changes)
    assert Experiment.from_dict(experiment.to_dict()) == experiment


@dataclass(frozen=True, kw_only=True)
class Later(ObjectiveRule):
    """An objective of a user's that depends on progress in a way of its own."""

    moves = True

    def __call__(self, u, draws, *, progress=None, **given):
        return MeanFlowLoss()(u, draws, **given)


def test_what_moves_is_compiled_only_if_it_says_by_which_number():
    compiled = Compute(compile=True)
    with pytest.raises(ValueError, match="Later cannot be compiled where its program changes"):
        replace(PLAIN, loss=Later(), compute=compiled)
    for loss in (AlphaFlowLoss(), MeanFlowLoss(tangent_warmup=0.1)):
        assert replace(PLAIN, loss=loss, compute=compiled).loss.moves
