"""Curves of a whole search, read from MLflow."""

from pathlib import Path

import pytest
from helpers.searching import SPACE, begun, without_ray
from helpers.tiny import TINY

from vamf.cluster.search import search_runner
from vamf.cluster.search.trials import load_trials
from vamf.reproduction import halving


def test_curves_end_with_the_results_of_the_trials(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    experiment = TINY.override({"evaluation.every": TINY.steps // 3})
    sweep = begun(tmp_path / "s", tracking_uri, experiment=experiment)
    with pytest.raises(ValueError, match=r"no trial of .* is complete"):
        halving.recorded(sweep.directory, tracking_uri)
    search_runner.run(SPACE, sweep)

    found, trials = halving.recorded(sweep.directory, tracking_uri), load_trials(sweep.directory)
    third = TINY.steps // 3
    assert found.steps == (third, 2 * third, 3 * third) and found.baseline == 0
    assert found.objectives == sweep.objectives
    assert found.settings == [{"beta.value": 0.0}, {"beta.value": 1.0}]
    ends = [[trial.metrics[name].value for name in sweep.objectives] for trial in trials]
    assert found.ends.tolist() == ends
    assert found.values[0][0] != found.values[0][-1]
    assert "| steps saved |" in halving.table(found)
