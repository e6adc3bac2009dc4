"""The progress of a run, on a terminal and in a log."""

import io
import sys
import time
from pathlib import Path

import pytest
import torch

from vamf.cluster.train import progress as module
from vamf.cluster.train import worker
from vamf.cluster.train.progress import (
    COMPILING,
    SampleRate,
    add_note,
    described,
    notes,
    progress,
    progress_bar,
    step_bar,
)
from vamf.distributed import Workers
from vamf.presets import PRESETS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_few_lines_and_no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with step_bar(1000, 40) as bar:
        for _ in range(960):
            bar.update(1)
    lines = log.getvalue().splitlines()
    assert len(lines) <= 2 and "\r" not in log.getvalue()  # how it began, and how it ended
    assert "40/1000" in lines[0] and "1000/1000" in lines[-1]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with step_bar(10) as bar:
        bar.update(10)
    assert terminal.getvalue().startswith("\r")
    assert "10/10" in terminal.getvalue()


def test_notes_are_reported_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    add_note(tmp_path, "of an earlier start")
    with progress_bar(tmp_path, 10, 1):
        add_note(tmp_path, "2 up to step 4, 1 from there")
    with (tmp_path / "notes").open("a") as file:
        file.write("half a li")
    assert notes(tmp_path) == ["of an earlier start", "2 up to step 4, 1 from there"]
    assert log.getvalue().count("2 up to step 4, 1 from there\n") == 1
    assert "earlier" not in log.getvalue()


def test_a_run_that_has_not_begun_is_at_0(tmp_path: Path) -> None:
    assert (progress(tmp_path), notes(tmp_path)) == (0, [])
    (tmp_path / "progress").write_text("")  # as it is for a moment while it is written
    assert progress(tmp_path) == 0


def test_samples_a_second_are_counted_from_the_first_step() -> None:
    rate = SampleRate(256, 40)
    assert rate(40, 100.0) == ""  # it starts and compiles
    assert rate(41, 130.0) == ""
    assert rate(51, 132.0) == "1,280 samples/s"
    assert SampleRate(1)(5, 1.0) == ""
    slow = SampleRate(2)
    assert (slow(1, 0.0), slow(2, 4.0)) == ("", "0.5 samples/s")


def test_a_log_says_the_speed_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, now = io.StringIO(), iter(range(0, 1000, 2))
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(module, "LINE_S", 0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with progress_bar(tmp_path, 10, 100):
        for report in ({"step": 2}, {"step": 4, "memory/peak_gib": 13.2, "time/waiting": 0.03}):
            (tmp_path / "progress").write_text(described(report))
            time.sleep(0.7)
    last = log.getvalue().splitlines()[-1]
    assert "4/10 [" in last and "step/s, " in last
    assert last.endswith(" samples/s, 13.2 GiB, 3% waiting for data]")
    assert "<00:" in last  # the time left


@pytest.mark.parametrize(
    ("device", "rank", "compiles", "said"),
    [
        ("cuda", 0, True, [COMPILING]),
        ("cuda", 0, False, []),
        ("cuda", 1, True, []),
        ("cpu", 0, True, []),
    ],
)
def test_a_first_step_that_compiles_is_announced(
    device: str,
    rank: int,
    compiles: bool,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[str] = []
    workers = Workers(rank, 2, torch.device(device))
    monkeypatch.setattr(worker, "_workers", lambda *_: workers)
    monkeypatch.setattr(worker, "train", lambda *_: reported.extend(notes(tmp_path)))
    absent = dict.fromkeys(("probe", "mirror", "store", "run", "report", "early_stop", "gpus"))
    experiment = PRESETS["digits"].override({"compute.compile": compiles}).to_dict()
    worker.work({**absent, "experiment": experiment, "directory": str(tmp_path), "workers": 2})
    assert reported == said
