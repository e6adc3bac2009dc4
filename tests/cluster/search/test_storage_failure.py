"""What a search and a run make of storage that takes no more, or is gone."""

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import TINY

from jobs import cli
from vamf.cluster.search.storage_failure import StorageMonitor, as_storage_unusable, unusable
from vamf.cluster.search.trials import Trial, trial_folder
from vamf.errors import StorageUnusable
from vamf.files import make_folder
from vamf.tracking import Run, Tracker
from vamf.training.loop import Session, train


def caused(error: Exception) -> Exception:
    """The error as a library's own, as SQLAlchemy and Optuna raise it."""
    try:
        raise RuntimeError("an exception is raised during the commit") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize("wrapped", [lambda error: error, caused])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/a/b"),
        OSError(errno.EROFS, "Read-only file system", "/a/b"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"),
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("attempt to write a readonly database"),
    ],
)
def test_storage_that_takes_no_more_is_known(
    error: Exception, wrapped: Callable[[Exception], Exception]
) -> None:
    with pytest.raises(StorageUnusable) as caught, as_storage_unusable():
        raise wrapped(error)
    assert (getattr(error, "strerror", None) or str(error)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_are_as_they_were() -> None:
    for error in (OSError(errno.ECONNRESET, "reset"), ValueError("beta must"), caused(KeyError())):
        assert unusable(error) is None
        with pytest.raises(type(error)), as_storage_unusable():
            raise error


def test_a_search_hears_of_its_storage(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    storage = StorageMonitor(tmp_path)
    storage.read_report({"steps": 1})
    assert storage.writable()
    storage.require()
    with pytest.raises(KeyError), storage.watched():  # a fault, not storage
        raise KeyError
    with storage.watched():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageUnusable, match="No space left"):
        storage.require()
    reported = StorageMonitor(tmp_path)
    reported.read_report({"storage_unusable": "cannot write /a"})
    with pytest.raises(StorageUnusable, match="cannot write /a"):
        reported.require()


def test_a_searchs_folder_that_is_gone_is_not_usable(tmp_path: Path) -> None:
    """Ray Tune makes it anew: an empty folder is none."""
    with pytest.raises(StorageUnusable, match=r"the search's folder, .*, is gone: No such file"):
        StorageMonitor(tmp_path).require()
    assert not StorageMonitor(tmp_path).writable()


def test_nothing_is_begun_anew_where_a_file_system_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Below its mount point, where it would be hidden once the file system is back."""
    with pytest.raises(FileNotFoundError):
        make_folder(tmp_path / "a" / "b" / "c", above=1)
    make_folder(tmp_path / "b" / "c", above=1)
    gone = tmp_path / "gone"
    with pytest.raises(FileNotFoundError):
        Trial(number=1, settings={}, label="").save(trial_folder(gone, 1))
    run = Run(uri="unused", run_id="1", experiment_id="1", spool=str(gone / "spool" / "1"))
    Tracker(run)
    assert "metrics may be lost" in capfd.readouterr().err
    assert not gone.exists()


def test_a_run_whose_folder_is_gone_ends(tmp_path: Path) -> None:
    def leave(figures: object, step: int) -> None:
        if step == 3:
            directory.rename(tmp_path / "elsewhere")

    directory = tmp_path / "run"
    with pytest.raises(FileNotFoundError):
        train(TINY, Session(directory=directory, log=leave))
    assert not directory.exists()


def test_a_job_tells_of_files_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        cli.guarded(lambda: (tmp_path / "file" / "run").mkdir())
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == f"error: cannot use {tmp_path}/file/run: Not a directory\n"
    with pytest.raises(ConnectionResetError):
        cli.guarded(lambda: exec("raise ConnectionResetError(104, 'reset')"))
