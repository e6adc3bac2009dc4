"""Each private name of MLflow that vamf uses is still there, and does what it is used for."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

from vamf.compat import mlflow as compat


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str]:
    """A client, and the id of a run with a curve and an image."""
    folder = tmp_path_factory.mktemp("mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("e", artifact_location=(folder / "files").as_uri())
    run = client.create_run(experiment).info.run_id
    client.log_batch(run, metrics=[Metric("loss/train", 0.5, 0, step) for step in (10, 20)])
    client.log_image(run, Image.new("RGB", (8, 8)), key="samples/a", step=30)
    return client, run


def test_the_last_step_of_a_metric_is_known(logged: tuple[Any, str]) -> None:
    client, run = logged
    assert compat.last_steps(client.get_run(run).data) == {"loss/train": 20}


def test_the_step_of_an_image_is_in_its_name(logged: tuple[Any, str]) -> None:
    client, run = logged
    names = [Path(file.path).name for file in client.list_artifacts(run, "images")]
    assert {compat.image_step(name) for name in names} == {(compat.image_key("samples/a"), 30)}


def test_another_file_has_no_step() -> None:
    assert compat.image_step("picture.png") is None


def test_the_ui_still_knows_experiments_for_training() -> None:
    scripts = list((Path(mlflow.__file__).parent / "server/js/build").rglob("*.js"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in scripts]
    for word in compat.TRAINING_EXPERIMENT:
        assert any(word in text for text in texts)
