"""The load of the machine beside a run's curves, when it is asked for."""

from pathlib import Path

import pytest
from helpers.tiny import TINY
from mlflow import MlflowClient

from vamf.cluster.train import system_metrics
from vamf.cluster.train.tracked_run import create, new
from vamf.tracking import Tracker

CPU = "system/cpu_utilization_percentage"
MEMORY = "system/system_memory_usage_percentage"


@pytest.mark.parametrize("asked", ["true", "1", "false", None])
def test_the_machines_load_is_logged_on_request(
    asked: str | None, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked is None:
        monkeypatch.delenv(system_metrics.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(system_metrics.VARIABLE, asked)
    ticks = iter([(10, 100), (40, 200)])
    monkeypatch.setattr(system_metrics, "_cpu_times", lambda: next(ticks))
    run = create(TINY, new(tmp_path / "a", tracking_uri, "digits"))
    with system_metrics.logged(Tracker(run)):
        pass
    metrics = MlflowClient(tracking_uri).get_run(run.run_id).data.metrics
    if asked in ("true", "1"):
        assert metrics[CPU] == pytest.approx(30)
        assert 0 < metrics[MEMORY] < 100
    else:
        assert not [name for name in metrics if name.startswith("system/")]


def test_the_systems_own_files_are_read() -> None:
    times = system_metrics._cpu_times()
    assert times is not None
    busy, all_ticks = times
    assert 0 < busy < all_ticks
    assert system_metrics.memory()[MEMORY] > 0
