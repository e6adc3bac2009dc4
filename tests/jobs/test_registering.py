"""Trainings and searches that register their best checkpoint in MLflow at their end."""

from pathlib import Path

import mlflow
import pytest
from helpers.searching import SPACE, begun, without_ray
from helpers.tiny import options

from jobs import registering, train, tune
from vamf.cluster.search import search_runner
from vamf.errors import RunFailed
from vamf.tracking import Run
from vamf.tracking.registry import check_name


def version(uri: str, name: str) -> tuple[int, str]:
    """The version with the alias best, and the folder of its run."""
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    found = client.get_model_version_by_alias(name, "best")
    return int(found.version), client.get_run(found.run_id).data.tags["directory"]


def test_a_training_and_its_resumption_register_the_best_checkpoint(
    tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--tracking", tracking_uri, "--register", "digits"]
    place = ["--storage", str(tmp_path), "--name", "a", *known]
    train.main(["digits", *place, "--scaling.gpus", "0", *options({})])
    folder = str(tmp_path / "a")
    assert "model      models:/digits@best\n" in capsys.readouterr().out
    assert version(tracking_uri, "digits") == (1, folder)
    train.main(["--resume", folder, *known])  # nothing is left to train
    assert version(tracking_uri, "digits") == (2, folder)


def test_a_search_registers_its_best_trial(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    monkeypatch.setattr(
        tune.named, "space", lambda name: __import__("helpers.searching").searching.SPACE
    )
    sweep = begun(tmp_path / "s", tracking_uri)
    found, _ = search_runner.run(SPACE, sweep)
    assert found.best is not None
    tune.main(["--resume", str(sweep.directory), "--tracking", tracking_uri, "--register", "found"])
    folder = sweep.directory / f"t{found.best.number:03d}" / "seed_0"
    assert version(tracking_uri, "found") == (1, str(folder))


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "v1.2", "50%", "it's"])
@pytest.mark.parametrize("job", [train, tune])
def test_a_name_that_mlflow_does_not_take_is_refused_before_anything(
    job: object, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [] if job is tune else ["digits"]
    for argv in ([*first, "--storage", str(tmp_path / "s")], ["--resume", str(tmp_path)]):
        with pytest.raises(SystemExit):
            job.main([*argv, "--register", name])  # type: ignore[attr-defined]
        expected = f"""a model's name must be some text without /:.%"'; got {name!r}"""
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_mlflow_takes_other_names() -> None:
    for name in ("digits", "beta 0,5", "β", "a-b_c"):
        check_name(name)


def test_a_refusal_names_the_command_that_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training is done then, and MLflow may be back soon."""

    def refuse(*_: object) -> str:
        raise ValueError("'x' was not registered; MLflow does not answer")

    monkeypatch.setattr(registering, "export", lambda *_: 6)
    monkeypatch.setattr(registering, "register", refuse)
    Run(uri="", run_id="1", experiment_id="2", spool="3").save(tmp_path / "run.json")
    again = rf"does not answer; to try again: .*(vamf |jobs\.)export {tmp_path} --register x$"
    with pytest.raises(RunFailed, match=again):
        registering.register_best(tmp_path, "", "x", tmp_path)
