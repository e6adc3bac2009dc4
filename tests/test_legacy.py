"""What vamf 0.1.0 left behind, on 2026-11-30: a run, a search and an export, all cut short."""

import tarfile
from pathlib import Path

import pytest
import torch
from helpers.pinned import sketch
from helpers.searching import SPACE, without_ray
from helpers.tiny import history, tracked

from jobs import train
from vamf.cluster.search import search_runner
from vamf.inference.load import load
from vamf.inference.sampling import generator_of

NORM = 22.355807615183053
SKETCH = [-18.86490959605036, 12.54869648296579, -10.573244570079748, -3.7135455184926087]
SKETCH += [19.809754622660446, -26.111701730467544, 1.8760757243559736, 6.556550347294792]
"""Of the export's samples."""
WEIGHTS = [-4.1339194675996875, -24.370789842359596, 10.65725297943551, -0.30079471857298135]
WEIGHTS += [-15.132007135389989, -0.272677154725784, -24.41672950023786, -33.31311427081895]
"""Of the run's weights at its end."""
VARIANCES = [0.061213293438837045, 0.0606660117379878]
"""The trials' loss variances."""

STORAGE = Path(__file__).with_name("legacy") / "storage.tar.xz"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tarfile.open(STORAGE) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "storage"


def samples(place: Path) -> torch.Tensor:
    return generator_of(load(place, torch.device("cpu")), steps=2, seed=3)(range(8))


def test_an_export_and_its_run_are_sampled_as_they_were(storage: Path) -> None:
    pictures = samples(storage / "model.safetensors")
    assert torch.equal(pictures, samples(storage / "run"))
    found = sketch([pictures])
    assert found["norm"] == pytest.approx(NORM, rel=1e-5)
    assert found["sketch"] == pytest.approx(SKETCH, abs=1e-4 * NORM)


def test_a_run_goes_on(storage: Path) -> None:
    train.main(["--resume", str(storage / "run")])
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    (run,) = tracked(uri, storage / "run")
    assert run.info.status == "FINISHED"
    assert list(history(uri, run, "loss/train")) == [1, 2, 3, 4, 5, 6]
    state = torch.load(
        storage / "run" / "checkpoints" / "step_00000006" / "state.pt", weights_only=True
    )
    assert state["step"] == 6
    weights = sketch(state["net"][key] for key in sorted(state["net"]))
    assert weights["sketch"] == pytest.approx(WEIGHTS, abs=1e-4 * weights["norm"])


def test_a_search_goes_on(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    search = search_runner.resumed(storage / "search", f"sqlite:///{storage / 'mlflow.db'}")
    found, _ = search_runner.run(SPACE, search)
    assert [trial.error for trial in found.trials] == [None, None]
    assert [trial.settings for trial in found.trials] == [{"beta.value": 0.0}, {"beta.value": 1.0}]
    variances = [trial.metrics["eval/loss_variance"].value for trial in found.trials]
    assert variances == pytest.approx(VARIANCES, rel=1e-4)
