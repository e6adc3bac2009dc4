"""What cannot be printed ends no work, and repeats none."""

import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tiny import TINY
from helpers.tree import ROOT

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.search_monitor import SearchMonitor
from vamf.cluster.search.trials import Trial, trial_folder
from vamf.cluster.train.progress import add_note, notes, progress_bar
from vamf.output import say

JOBS = sorted(
    path.stem
    for path in (ROOT / "jobs").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)

PROGRAM = """
import sys
from pathlib import Path
from vamf.output import ignore_write_errors, say

ignore_write_errors()
print("β = 0.5", flush=True)
say("seed \\u00b1", error=True)
for _ in range(20000):
    print("a line that fills the pipe")
say("said")
Path(sys.argv[1]).write_text("worked to its end")
"""


def run(
    folder: Path, redirection: str = "", python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """A program that prints much and then does its work, in a shell that sees its status."""
    command = f'{python} -c "$PROGRAM" "$DONE" {redirection}; echo status ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PROGRAM": PROGRAM, "DONE": str(folder / "done"), **variables}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict"])
def test_what_a_terminal_lacks_is_escaped(encoding: str, tmp_path: Path) -> None:
    done = run(tmp_path, PYTHONIOENCODING=encoding)
    assert done.stdout.startswith(b"\\u03b2 = 0.5\n")
    assert done.stdout.endswith(b"said\nstatus 0\n")
    assert done.stderr in (b"seed \\xb1\n", "seed ±\n".encode("latin-1"))
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("redirection", "printed"),
    [
        ("| head -n 1", "β = 0.5\n"),
        ("2>&1 | head -n 2", "β = 0.5\nseed ±\n"),
        ("2>&1 | true", ""),
        (">/dev/full", ""),
        (">&- 2>&-", ""),
    ],
)
@pytest.mark.parametrize("python", [sys.executable, f"{sys.executable} -u"])
def test_work_goes_on_without_a_reader(
    redirection: str, printed: str, python: str, tmp_path: Path
) -> None:
    done = run(tmp_path, redirection, python, PYTHONIOENCODING="utf-8")
    assert done.stdout.decode() == f"{printed}status 0\n"
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("job", JOBS)
def test_every_job_prints_on_any_terminal(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its help has characters that ASCII lacks: without care it ends by an exception."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", [job, *(["digits"] if job == "train" else []), "--help"])
    monkeypatch.delitem(sys.modules, f"jobs.{job}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    assert ended.value.code == 0
    out.flush()
    assert out.buffer.getvalue()  # type: ignore[attr-defined]


class Broken(io.StringIO):
    """A terminal of which nothing is left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def ascii_only() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


@pytest.mark.parametrize("stream", [Broken(), ascii_only(), None])
def test_a_bar_and_its_notes_end_nothing(
    stream: io.TextIOBase | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for those who use the library without the jobs."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    with progress_bar(tmp_path, 10, 1):
        add_note(tmp_path, "β is unusual")
        (tmp_path / "progress").write_text("7")
    say("β")
    say("β", error=True)
    if isinstance(stream, io.TextIOWrapper):
        assert b"\\u03b2 is unusual\n" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_searchs_callbacks_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Tune takes an exception of theirs for a failure of the trial, and repeats it."""
    trial = Trial(number=3, settings={}, label="β=0.500", error="it was in the way")
    trial.save(trial_folder(tmp_path, 3))
    sweep: Any = SimpleNamespace(
        directory=tmp_path, objectives=(), scaling=Scaling(), experiment=TINY
    )
    monitor = SearchMonitor(None, sweep, None)  # type: ignore[arg-type]
    out = ascii_only()
    for stream in (Broken(), out):
        monkeypatch.setattr(sys, "stdout", stream)
        for number in (3, 4):  # of which the latter has left no record
            monitor.print_line(number)
    lines = out.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "trial 3  \\u03b2=0.500  failed: it was in the way"
    assert lines[1].startswith("trial 4: its record could not be read: ")


def test_notes_do_not_depend_on_the_locale(tmp_path: Path) -> None:
    code = (
        f"from vamf.cluster.train.progress import *; add_note(Path({str(tmp_path)!r}), '\\u03b2')"
    )
    latin = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = {**os.environ, **latin, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert notes(tmp_path) == ["β"]
