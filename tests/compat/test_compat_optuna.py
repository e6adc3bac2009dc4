"""Each private name of Optuna that vamf uses is still there, and does what it is used for."""

from pathlib import Path

import optuna

from vamf.compat import optuna as compat


def test_a_trial_that_nobody_runs_is_asked_for_again(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="s")
    lost, other = study.ask(), study.ask()
    drawn = lost.suggest_float("x", 0, 1)
    compat.requeue(storage, "s", [lost.number])
    again = study.ask()
    assert again.number == lost.number != other.number
    assert again.suggest_float("x", 0, 1) == drawn
