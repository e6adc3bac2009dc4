"""How far a run is, told to a terminal and to a log."""

import io
import sys
from pathlib import Path

import pytest

from vamf.cluster.bars import add_note, notes, progress, progress_bar, step_bar


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


def test_notes_are_told_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    add_note(tmp_path, "of an earlier start")
    with progress_bar(tmp_path, 10):
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
