"""An MLflow model of an exported network: loaded by MLflow itself, without a server."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.machine import descendants, free_ports, kill, wait_until
from helpers.tiny import TINY

from jobs import export, sample
from vamf.cluster.train.tracked_run import create, new
from vamf.tracking.model import save_model
from vamf.training.loop import Session, train

LOCKED = ("uv.lock", "pyproject.toml", ".python-version")
"""What a project of uv has in its folder, with the addresses of its package registries."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported file and the MLflow model of it, made by the job."""
    folder = tmp_path_factory.mktemp("export")
    run, out, model = folder / "run", folder / "model.safetensors", folder / "mlflow"
    train(TINY, Session(directory=run))
    for name in LOCKED:
        (folder / name).write_text("[project]\nname = 'theirs'\nversion = '1'\n")
    with chdir(folder):
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


def test_the_best_checkpoint_is_registered_as_a_model_of_its_run(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas

    start = new(tmp_path / "a", tracking_uri, "digits")
    run = create(TINY, start)
    train(TINY, Session(directory=tmp_path / "a"))
    out = ["--out", str(tmp_path / "a.safetensors"), "--tracking", tracking_uri]
    for _ in range(2):
        export.main([str(tmp_path / "a"), *out, "--register", "tiny"])
    client = mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)
    version = client.get_model_version_by_alias("tiny", "best")
    assert (int(version.version), version.run_id) == (2, run.run_id)
    models = client.get_run(run.run_id).outputs.model_outputs
    assert [model.step for model in models] == [TINY.steps] * 2
    assert any(model.model_id in version.source for model in models)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    loaded = mlflow.pyfunc.load_model("models:/tiny@best")
    assert len(loaded.predict(pandas.DataFrame({"count": [3], "seed": [5]}))) == 3


def test_what_has_no_run_is_not_registered(exported, tmp_path, capsys):
    out = tmp_path / "b.safetensors"
    with pytest.raises(SystemExit):
        export.main([str(exported[0].parent / "run"), "--out", str(out), "--register", "tiny"])
    assert "must be of a run with a run.json; got" in capsys.readouterr().err


def test_a_model_is_not_written_over(exported):
    with pytest.raises(ValueError, match="must be empty; got files in"):
        save_model(*exported)


def test_a_model_holds_weights_and_code_and_neither_a_pickle_nor_a_lock_file(exported):
    files = [path for path in exported[1].rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    assert not {path.name for path in files} & {*LOCKED}
    assert "MLFLOW_UV_AUTO_DETECT" not in os.environ
    assert not [path for path in files if path.suffix in (".pkl", ".pt", ".pth")]


DENOISING = {
    **{"times.kind": "UniformTimes", "times.prob_equal": 1.0, "ddpm.levels": 20, "proxy": "ema"},
    "evaluation.sampler": "ancestral",
    "evaluation.sampling_steps": 20,
}
"""A DDPM, whose sampler takes all of its levels."""


@contextmanager
def serving(model, log):
    """``mlflow models serve`` as the job tells it, in a process of its own; yields its address."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | {"PATH": path}, cwd=model
        )

    def answers():
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200
        return False

    try:
        wait_until(answers, "an answer of the server")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        kill({process.pid, *descendants(process.pid)})
        process.wait()


def asked(address, row):
    """Images that a server answers with."""
    body = json.dumps({"dataframe_records": [row]}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array(json.load(answer)["predictions"])


@pytest.mark.slow
def test_a_served_model_samples_as_its_experiment_says(tmp_path):
    """By the real server: a DDPM takes its own sampler and steps, and refuses others."""
    run, out, model = tmp_path / "run", tmp_path / "m.safetensors", tmp_path / "model"
    train(TINY.override(DENOISING), Session(directory=run))
    export.main([str(run), "--out", str(out), "--mlflow", str(model)])
    sample.main([str(out), "--count", "2", "--seed", "3", "--out", str(tmp_path / "a.npz")])
    with np.load(tmp_path / "a.npz") as stored, serving(model, tmp_path / "log") as address:
        images = asked(address, {"count": 2, "seed": 3})
        assert images.shape == (2, 8, 8, 1) and (images == stored["arr_0"]).all()
        assert (asked(address, {"count": 2, "seed": 3, "steps": 20}) == images).all()
        with pytest.raises(urllib.error.HTTPError) as refusal:
            asked(address, {"count": 2, "steps": 1})
        assert refusal.value.code == 400
        assert "takes all 20 levels; got 1 steps" in refusal.value.read().decode()
