"""The progress bar of a search."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helpers.tiny import TINY

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.search_monitor import SearchMonitor
from vamf.cluster.train.progress import step_bar


def test_the_steps_of_a_search_are_those_of_its_trials(tmp_path: Path) -> None:
    """A space may choose them; trials that have not started count as the others on average."""
    experiment = TINY.override({"steps": 100})
    sweep: Any = SimpleNamespace(
        directory=tmp_path,
        objectives=(),
        scaling=Scaling(),
        experiment=experiment,
        seeds=2,
        store=None,
    )
    with step_bar(4 * 2 * 100) as bar:
        monitor = SearchMonitor(None, sweep, bar)  # type: ignore[arg-type]
        for number, steps, total in ((0, 10, 80), (1, 30, 160), (2, 20, 160), (3, 12, 144)):
            monitor.started(number, {"steps": steps})
            assert bar.total == total
        monitor.started(3, {"steps": 12})  # it is tried again
        assert bar.total == 144
        monitor.reported(1, {"steps": 45})
        assert bar.n == 45


def test_settings_that_a_trial_refuses_end_no_callback(tmp_path: Path) -> None:
    sweep: Any = SimpleNamespace(
        directory=tmp_path, objectives=(), scaling=Scaling(), experiment=TINY, seeds=1, store=None
    )
    with step_bar(None) as bar:
        monitor = SearchMonitor(None, sweep, bar)  # type: ignore[arg-type]
        monitor.started(0, {"steps": -1})
        assert bar.total is None
