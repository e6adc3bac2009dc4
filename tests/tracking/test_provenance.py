"""What a run records about where it came from."""

import subprocess
import sys
from pathlib import Path

import pytest

from vamf.tracking import provenance


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A file that git knows."""
    file = tmp_path / "code.py"
    file.write_text("")
    (tmp_path / ".gitignore").write_text("runs/\n")
    for command in (
        "init -q",
        "add .",
        "-c user.name=a -c user.email=a@b commit -qm first",
    ):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return file


def test_a_commit_is_dirty_by_changes_and_by_new_files(repository: Path) -> None:
    commit = provenance.commit_of(repository)
    assert commit is not None and len(commit) == 40
    (repository.parent / "runs").mkdir()
    (repository.parent / "runs" / "a").touch()
    assert provenance.commit_of(repository) == commit  # git ignores it
    new = repository.parent / "new.py"
    new.touch()
    assert provenance.commit_of(repository) == f"{commit}-dirty"
    new.unlink()
    repository.write_text("changed")
    assert provenance.commit_of(repository) == f"{commit}-dirty"


def test_a_package_inside_another_repository_is_not_of_its_commit(repository: Path) -> None:
    installed = repository.parent / "runs" / "site-packages" / "code.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert provenance.commit_of(installed) is None
    assert provenance.commit_of(Path("/nowhere/code.py")) is None


def test_what_a_submission_hands_on_becomes_tags(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/code/jobs/train.py", "digits"])
    commit = provenance.commit_of(repository)
    (repository.parent / "new.py").touch()
    for name, value in provenance.job_variables(repository, "raysubmit_1").items():
        monkeypatch.setenv(name, value)
    assert provenance.tags() == {
        "git.commit": f"{commit}-dirty",
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "train.py",
        "ray.job": "raysubmit_1",
    }
    for name, value in provenance.job_variables(Path("/nowhere/code.py"), "raysubmit_2").items():
        monkeypatch.setenv(name, value)
    reported = provenance.tags()
    assert reported["git.commit"] == "unknown" and "mlflow.source.git.commit" not in reported
    assert reported["ray.job"] == "raysubmit_2"


def test_a_trials_process_tells_what_its_driver_would(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in provenance.job_variables(repository, "raysubmit_1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["/code/jobs/tune.py", "constant"])
    here, known = provenance.tags(), provenance.own_variables()
    for name in (provenance.COMMIT, provenance.JOB):
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["default_worker.py"])
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    assert provenance.tags() == here
