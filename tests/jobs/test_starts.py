"""Jobs that start together own their folders, and one that goes on has what it had."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from helpers.tiny import TINY, options

from jobs import reproduce, train, tune
from vamf.cluster.ray import connect
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train import tracked_run as launching
from vamf.cluster.train.tracked_run import launch, new, scaling_of
from vamf.experiment import Experiment
from vamf.files import claimed
from vamf.reproduction import publish
from vamf.store import Store
from vamf.training.loop import Summary

AT_ONCE = 8
ENDED = Summary(step=6, seconds=1.0, metrics={})


def together(action: Callable[[], Path]) -> list[Path | str]:
    """What an action returns, or the error that it raises, begun in several threads at once."""
    barrier = Barrier(AT_ONCE)

    def one(_: int) -> Path | str:
        barrier.wait()
        try:
            return action()
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, range(AT_ONCE)))


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    got = together(lambda: claimed(tmp_path / "runs" / "a", numbered=False))
    refused = f"{tmp_path / 'runs' / 'a'} exists; choose another --name, or --resume it"
    assert sorted(map(str, got)) == sorted(
        [str(tmp_path / "runs" / "a"), *[refused] * (AT_ONCE - 1)]
    )


def test_a_name_that_was_made_up_is_numbered(tmp_path: Path) -> None:
    got = together(lambda: claimed(tmp_path / "a", numbered=True))
    assert {str(path) for path in got} == {
        str(tmp_path / name) for name in ("a", *(f"a-{n}" for n in range(2, AT_ONCE + 1)))
    }


@pytest.fixture
def same_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Scaling]]:
    """The folder and the scaling of each training, which ends at once."""
    found: list[tuple[Path, Scaling]] = []

    def fit(
        experiment: Experiment, directory: Path, run: object, scaling: Scaling, **_: Any
    ) -> Summary:
        found.append((directory, scaling))
        return ENDED

    monkeypatch.setattr(launching, "fit", fit)
    monkeypatch.setattr(connect, "prepare", lambda scaling, *_, **__: scaling)
    return found


def test_trainings_of_one_second_have_a_folder_and_a_run_each(
    same_second: None,
    launched: list[tuple[Path, Scaling]],
    tracking_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["digits", "--storage", str(tmp_path), "--tracking", tracking_uri, *options({})]
    train.main(argv)
    train.main(argv)
    train.main([*argv, "seed=1"])
    names = [directory.name for directory, _ in launched]
    assert names == [f"digits-20260101-000000{end}" for end in ("", "-2", "-3")]
    runs = [json.loads((folder / "run.json").read_text())["run_id"] for folder, _ in launched]
    assert len(set(runs)) == 3
    assert f"run        {launched[1][0]}\n" in capsys.readouterr().out


def test_a_name_that_another_takes_meanwhile_is_one_line(
    launched: list[tuple[Path, Scaling]],
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Experiment, "prepare", lambda self: (tmp_path / "a").mkdir(exist_ok=True))
    line = f"error: {tmp_path / 'a'} exists; choose another --name, or --resume it\n"
    for job, name in ((train, "digits"), (tune, "constant")):
        argv = [name, "--name", "a", "--storage", str(tmp_path), "--tracking", tracking_uri]
        with pytest.raises(SystemExit) as ended:
            job.main(argv)
        assert (ended.value.code, capsys.readouterr().err) == (2, line)
        assert list((tmp_path / "a").iterdir()) == []
        (tmp_path / "a").rmdir()
    assert launched == []


def test_searches_of_one_second_have_a_folder_each(
    same_second: None, launched: list, tracking_uri: str, tmp_path: Path
) -> None:
    argv = ["--storage", str(tmp_path), "--tracking", tracking_uri]
    sweeps = [tune.new(*tune.read(argv)) for _ in range(2)]
    names = [f"beta-constant-20260101-000000{end}" for end in ("", "-2")]
    assert [sweep.name for sweep in sweeps if sweep] == names
    assert all(sweep.directory.is_dir() for sweep in sweeps if sweep)


def test_reproductions_of_one_second_have_a_folder_each_and_a_named_one_is_joined(
    same_second: None, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish.runner, "run", lambda *_: [])
    argv = ["--sets", "two_moons", "--storage", str(tmp_path), "--tracking", tracking_uri]
    for more in ([], [], ["--steps", "7"], ["--name", "a"], ["--name", "a"]):
        reproduce.main([*argv, *more])
    made = [f"reproduce-20260101-000000{end}" for end in ("", "-2", "-3")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", *made]


def resume(folder: Path, uri: str, *more: str) -> None:
    train.main(["--resume", str(folder), "--tracking", uri, *more])


def test_a_run_goes_on_with_its_scaling(
    launched: list[tuple[Path, Scaling]], tracking_uri: str, tmp_path: Path
) -> None:
    eight = Scaling(workers=8, min_workers=4, cpus=3, gpus=0.5, placement="SPREAD", wait=9)
    launch(TINY, new(tmp_path / "a", tracking_uri, "digits"), eight)
    resume(tmp_path / "a", tracking_uri)
    assert launched[-1] == (tmp_path / "a", eight)
    resume(tmp_path / "a", tracking_uri, "--scaling.workers", "4", "--scaling.gpus", "0")
    four = Scaling(workers=4, min_workers=4, cpus=3, gpus=0, placement="SPREAD", wait=9)
    assert launched[-1][1] == four
    resume(tmp_path / "a", tracking_uri, "--scaling.min-workers=2")  # none that workers=0 allows
    assert launched[-1][1].min_workers == 2


def test_a_run_of_an_earlier_version_goes_on_in_one_process(
    launched: list[tuple[Path, Scaling]], tracking_uri: str, tmp_path: Path
) -> None:
    launch(TINY, new(tmp_path / "a", tracking_uri, "digits"), Scaling(workers=2))
    (tmp_path / "a" / "scaling.json").unlink()
    resume(tmp_path / "a", tracking_uri)
    assert launched[-1][1] == Scaling()


def test_a_scaling_that_cannot_be_read_is_one_line(
    launched: list, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(TINY, new(tmp_path / "a", tracking_uri, "digits"), Scaling(workers=2))
    (tmp_path / "a" / "scaling.json").write_text('{"workers": "tw')
    with pytest.raises(SystemExit) as ended:
        resume(tmp_path / "a", tracking_uri)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the run's scaling.json must hold a scaling; got ")


def test_a_stored_runs_scaling_is_read_from_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(store: Store, name: str) -> bytes:
        if (store.name, name) != ("a", "scaling.json"):
            raise FileNotFoundError(name)
        return b'{"workers": 8}'

    monkeypatch.setattr(Store, "read", read)
    assert scaling_of(Store("s3://bucket/a")) == Scaling(workers=8)
    assert scaling_of(Store("s3://bucket/b")) == Scaling()
