"""A search whose trials start from another run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import toy
from helpers.searching import begun, without_ray
from helpers.tiny import checkpoint, same, tracked

from vamf import tracking
from vamf.cluster.search.trial_runner import run_trial
from vamf.cluster.search.trials import trial_folder
from vamf.cluster.train.tracked_run import create, new
from vamf.training.loop import Session, train

TOY = toy.TOY.override({"steps": 4})


def test_a_trial_starts_from_the_checkpoint_of_the_search(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search names the checkpoint that was the source's best when it was created."""
    without_ray(monkeypatch)
    source, best = tmp_path / "source", checkpoint(tmp_path / "source", 4)
    made = create(TOY, new(source, tracking_uri, "toy"))
    train(TOY, Session(directory=source))
    sweep = begun(tmp_path / "s", tracking_uri, experiment=replace(TOY, init=source))
    tracking.rejoin(sweep.parent)
    run_trial(sweep, 0, {"beta.value": 1.0})
    folder = trial_folder(sweep.directory, 0) / "seed_0"
    averaged = {f"module.{n}": v for n, v in checkpoint(folder, 0).load()["net"].items()}
    count = {"n_averaged": torch.tensor(TOY.steps + 1)}
    assert same(averaged | count, dict(best.load()["ema"]))
    (trial,), (parent,) = tracked(tracking_uri, folder), tracked(tracking_uri, sweep.directory)
    for run in (trial, parent):
        assert run.data.params["init"] == str(best.path)
        assert run.data.tags["init.run"] == made.run_id
    assert trial.data.tags["init"] == f"starts from the moving average of step 4 in {best.path}"
