"""vamf from Python: the same runs, samples and searches as by the jobs; importing it is free."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from helpers.searching import SPACE
from helpers.tiny import SETTINGS, TINY, history, tracked
from helpers.tree import ROOT
from test_legacy import STORAGE

import vamf
from jobs import sample
from vamf import user_modules

FEW = {name: value for name, value in SETTINGS.items() if not name.startswith("model.")}


@pytest.fixture
def legacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tarfile.open(STORAGE) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "storage"


def test_importing_vamf_imports_nothing_large() -> None:
    program = "import vamf, sys; print(sorted({'torch', 'ray', 'mlflow'} & {*sys.modules}))"
    run = [sys.executable, "-c", program]
    found = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "[]\n"


def test_every_public_name_is_found_where_its_type_is() -> None:
    for name in vamf.__all__:
        assert getattr(vamf, name) is getattr(sys.modules[vamf._WHERE[name]], name)
    assert {*vamf.__all__} <= {*dir(vamf)}
    with pytest.raises(AttributeError, match="module 'vamf' has no attribute 'trian'"):
        vamf.trian  # noqa: B018


def test_a_run_is_trained_loaded_and_sampled_as_by_the_jobs(
    tmp_path: Path, tracking_uri: str
) -> None:
    folder = tmp_path / "runs" / "a"
    run = vamf.train(TINY, directory=folder, tracking_uri=tracking_uri, seed=3)
    assert run.directory == folder and "eval/loss_variance" in run.metrics
    saved = json.loads((folder / "experiment.json").read_text())
    assert vamf.Experiment.from_dict(saved) == TINY.override({"seed": 3})
    (row,) = tracked(tracking_uri, folder)
    assert row.info.status == "FINISHED" and len(history(tracking_uri, row, "loss/train")) == 6

    model = run.load("cpu")
    assert model.experiment.seed == 3
    samples = model.sample(5, seed=1)
    assert samples.shape == (5, 1, 8, 8)
    torch.testing.assert_close(samples[:2], model.sample(2, seed=1), rtol=0, atol=1e-4)
    sample.main([str(folder), "--out", str(tmp_path / "b.png"), "--seed", "1", "--device", "cpu"])
    assert model.grid(seed=1)._repr_png_() == vamf_png(tmp_path / "b.png")

    for wrong, line in (
        (lambda: vamf.train(TINY, directory=folder, tracking_uri=tracking_uri), "exists; choose"),
        (lambda: vamf.train("digist"), "unknown preset .digist.; did you mean .digits."),
        (lambda: vamf.train("digits", stpes=3), "unknown setting 'stpes'; did you mean 'steps'"),
        (lambda: vamf.load(tmp_path), "no checkpoint"),
        (lambda: vamf.results(tmp_path), "sweep.json is missing"),
        (lambda: model.sample(0), "count must be at least 1; got 0"),
        (lambda: model.sample(1, label=3), "takes no labels"),
    ):
        with pytest.raises(ValueError, match=line):
            wrong()


def vamf_png(file: Path) -> bytes | None:
    """A picture as a notebook shows it."""
    from PIL import Image

    shown: bytes | None = Image.open(file)._repr_png_()
    return shown


def test_a_run_that_was_cut_short_is_resumed(legacy: Path) -> None:
    run = vamf.resume(legacy / "run")
    (row,) = tracked(f"sqlite:///{legacy / 'mlflow.db'}", legacy / "run")
    assert row.info.status == "FINISHED" and run.metrics
    assert run.load("cpu").trained.step == 6


def test_the_trials_of_a_search_are_rows(legacy: Path) -> None:
    (folder,) = (path.parent for path in legacy.glob("*/sweep.json"))
    search = vamf.results(folder)
    rows = search.to_pandas()
    assert list(rows["trial"]) == [trial.number for trial in search.results.trials]
    done = search.results.complete
    variance = rows.set_index("trial")["eval/loss_variance"]
    assert [variance[t.number] for t in done] == [
        t.metrics["eval/loss_variance"].value for t in done
    ]
    assert "| trial |" in str(search)


@pytest.mark.slow  # a search on Ray
def test_a_search_of_ones_own_space_data_network_and_loss(
    tmp_path: Path, tracking_uri: str, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shapes = user_modules.load("jobs/examples/shapes.py:SHAPES").override(FEW)
    search = vamf.tune(
        "jobs/examples/shapes_space.py",
        experiment=shapes,
        trials=2,
        directory=tmp_path / "s",
        tracking_uri=tracking_uri,
        scaling=vamf.Scaling(gpus=0),
    )
    assert search.results.trials == vamf.results(tmp_path / "s").results.trials
    assert list(search.to_pandas()["error"]) == [None, None]
    model = vamf.load(tmp_path / "s" / "t000" / "seed_0", "cpu")
    assert model.experiment == shapes.override(search.results.trials[0].settings)
    assert model.sample(2).shape == (2, 1, 8, 8)


@pytest.mark.slow  # Ray Train
def test_ones_own_data_network_and_loss_are_trained_by_workers(
    tmp_path: Path, tracking_uri: str, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shapes = user_modules.load("jobs/examples/shapes.py:SHAPES").override(FEW)
    one = vamf.train(shapes, directory=tmp_path / "one", tracking_uri=tracking_uri)
    two = vamf.train(shapes, directory=tmp_path / "two", tracking_uri=tracking_uri, workers=2)
    samples = [run.load("cpu").sample(4) for run in (one, two)]
    torch.testing.assert_close(*samples, rtol=0, atol=1e-4)


def test_a_space_that_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a space's function must be at the top level of a module"):
        vamf.tune(SPACE, experiment=TINY, directory=tmp_path / "s")
