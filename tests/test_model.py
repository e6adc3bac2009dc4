"""An MLflow model of an exported network: loaded by MLflow itself, without a server."""

import sys

import numpy as np
import pytest
from tiny import TINY

from jobs import export, sample
from vamf import tracking
from vamf.training.loop import Session, train


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported file and the MLflow model of it, made by the job."""
    folder = tmp_path_factory.mktemp("export")
    run, out, model = folder / "run", folder / "model.safetensors", folder / "mlflow"
    train(TINY, Session(directory=run))
    export.main([str(run), "--out", str(out), "--mlflow", str(model)])
    return out, model


@pytest.fixture
def loaded(exported, monkeypatch):
    """MLflow puts the model's own copy of vamf in front of the installed one."""
    from mlflow import pyfunc

    monkeypatch.setattr(sys, "path", list(sys.path))
    return pyfunc.load_model(str(exported[1]))


def test_predicts_what_the_job_samples(exported, loaded, tmp_path):
    import pandas

    out = tmp_path / "a.npz"
    sample.main([str(exported[0]), "--count", "3", "--seed", "5", "--out", str(out)])
    images = loaded.predict(pandas.DataFrame({"count": [3], "seed": [5]}))
    with np.load(out) as stored:
        assert images.dtype == np.uint8 and (images == stored["arr_0"]).all()


def test_refusals_reach_whoever_asked(loaded):
    import pandas
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=r"count must lie in 1, ..., 10000; got 0"):
        loaded.predict(pandas.DataFrame({"count": [0]}))
    with pytest.raises(MlflowException, match="count"):
        loaded.predict(pandas.DataFrame({"number": [1]}))


def test_a_model_is_not_written_over(exported):
    with pytest.raises(ValueError, match="must be empty; got files in"):
        tracking.save_model(*exported)


def test_a_model_holds_weights_and_code_and_no_pickle(exported):
    files = [path for path in exported[1].rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pt", ".pth")]
