"""The text beside a search's bar."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from vamf.cluster.search.halving import Halving
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_runner import Plan
from vamf.cluster.search.search_status import SearchStatus
from vamf.cluster.search.space import Space
from vamf.cluster.search.trial_end import postpone, postponed
from vamf.cluster.search.trials import Trial, trial_folder
from vamf.metrics.distances import Measurement


def test_trials_are_counted_and_the_best_are_named(tmp_path: Path) -> None:
    sweep = SimpleNamespace(directory=tmp_path, objectives=("eval/loss_variance", "eval/fd"))
    status = SearchStatus(cast(Sweep, SimpleNamespace(**vars(sweep), trials=6)))
    assert status.text(2) == "0 of 6 trials done, 2 running, 0 failed"
    for number, values in enumerate([(3.0, 0.25), (2.0, 0.5), (float("nan"), 0.0)]):
        names = zip(sweep.objectives, values, strict=True)
        metrics = {name: Measurement(value, 0.0) for name, value in names}
        Trial(number=number, settings={}, label="b", metrics=metrics).save(
            trial_folder(tmp_path, number)
        )
    Trial(number=3, settings={}, label="b", error="died").save(trial_folder(tmp_path, 3))
    Trial(number=4, settings={}, label="b", stopped="beaten").save(trial_folder(tmp_path, 4))
    status.read()
    assert status.text(1) == (
        "3 of 6 trials done, 1 running, 2 failed, "
        "best loss_variance 2 (trial 1), best fd 0.25 (trial 0)"
    )


def test_a_trial_without_a_result_says_why_until_it_has_one(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, 3)
    assert postponed(folder) is None
    for why in ("MLflow does not answer", "another process has the run"):
        postpone(folder, RuntimeError(why))
        assert postponed(folder) == why
    Trial(number=3, settings={}, label="b").save(folder)
    assert postponed(folder) is None


def test_a_plan_ends_no_trial_early_unless_it_says_so() -> None:
    plan = Plan(space=cast(Space, None), name="constant", trials=2, seeds=1)
    assert plan.halving == Halving() and plan.halving.rungs == () and plan.preset is None
