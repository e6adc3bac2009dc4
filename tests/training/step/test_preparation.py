"""What is compiled before the first step is all that steps need."""

import os
import subprocess
import sys

import pytest
import torch

from vamf.models.fast import reference_ops
from vamf.presets import PRESETS
from vamf.training.step.preparation import _passes, kind_of_step
from vamf.training.step.trainer import Trainer

STEPS = """
import os
import torch
from vamf.benchmarks.step_time import trainer_of
from vamf.presets import PRESETS
from vamf.training.step.preparation import prepare_steps

def compiled():
    return sorted(os.listdir(os.environ["TRITON_CACHE_DIR"]))

small = {"batch": 16, "compute.compile": True}
own = trainer_of(PRESETS["digits"].override(small), torch.device("cuda"))
prepare_steps(own)
before = compiled()
for _ in range(5):
    own.train_step()
print(len(before), len(set(compiled()) - set(before)))
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_steps_compile_nothing_that_was_not_compiled_ahead(tmp_path):
    own = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", STEPS], env=own, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    ahead, later = map(int, ended.stdout.split())
    assert ahead > 10 and later == 0


def test_steps_of_a_kind_differ_in_numbers_only():
    """Betas and seeds share what is compiled; another batch or precision does not."""

    def kind(**over):
        experiment = PRESETS["digits"].override({"beta.value": 0.5, **over})
        return kind_of_step(Trainer(experiment, experiment.data.load("train")))

    usual = kind()
    assert kind(**{"beta.value": 0.25, "seed": 3, "optim.lr": 1e-4}) == usual
    others = [{"batch": 64}, {"compute.precision": "bfloat16"}, {"model.channels": 32}]
    others += [{"beta.value": 0.0}, {"loss.gamma": 0.5}]
    assert len({usual, *(kind(**over) for over in others)}) == 1 + len(others)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 0.8, 0.9])
def test_what_is_compiled_ahead_has_tangents_if_steps_have(share, monkeypatch):
    """Also of a few samples, where micro-batches are not chosen yet."""
    over = {"times.prob_equal": share, "compute.accumulate": "auto", "compute.compile": True}
    experiment = PRESETS["digits"].override(over | {"model.channels": 16, "batch": 64})
    own, tangents = Trainer(experiment, experiment.data.load("train")), []
    normalise = reference_ops.normalise

    def noted(x, d, *rest, **how):
        tangents.append(d is not None)
        return normalise(x, d, *rest, **how)

    monkeypatch.setattr(reference_ops, "normalise", noted)
    _passes(own)
    assert any(tangents)
