"""The time that a run took, summed over all attempts."""

from pathlib import Path

import pytest
import torch

from vamf.distributed import Workers
from vamf.run_layout import SPENT
from vamf.training import elapsed_time
from vamf.training.elapsed_time import Clock, Spent, spent_in


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(elapsed_time.time, "monotonic", lambda: clock[0])
    return clock


def test_seconds_add_up_over_attempts(now: list[float], tmp_path: Path) -> None:
    """On two GPUs, then, after a process died with ten seconds unsaved, on the CPU."""
    (tmp_path / "run").mkdir()
    clock = Clock(tmp_path / "run", Workers(0, 2, torch.device("cuda")))
    now[0] += 30
    clock.save()
    now[0] += 10
    assert clock.spent() == Spent(40, 80)
    clock = Clock(tmp_path / "run", Workers())
    now[0] += 5
    assert clock.spent() == Spent(35, 60)
    clock.save()
    assert spent_in([tmp_path / "run", tmp_path / "run", tmp_path / "none"]) == Spent(70, 120)


def test_runs_that_share_a_gpu_share_its_seconds(now: list[float], tmp_path: Path) -> None:
    """Four trials side by side on one GPU for 100 s take 100 GPU-seconds, and not 400."""
    clocks = []
    for name in "abcd":
        (tmp_path / name).mkdir()
        clocks.append(Clock(tmp_path / name, Workers(device=torch.device("cuda")), gpus=0.25))
    now[0] += 100
    for clock in clocks:
        clock.save()
    assert spent_in(tmp_path.iterdir()) == Spent(400, 100)
    both = Clock(tmp_path, Workers(0, 2, torch.device("cuda")), gpus=2.0)
    now[0] += 10
    assert both.spent() == Spent(10, 40)
    assert Clock(tmp_path, Workers(), gpus=0.25).spent().gpu_seconds == 0


def test_the_speed_of_steps_is_theirs_alone(now: list[float], tmp_path: Path) -> None:
    """Four steps in 2 s after an evaluation of 60 s."""
    clock = Clock(tmp_path, Workers())
    clock.begin_steps(0)
    now[0] += 10
    assert clock.seconds_of_step(5) == 2
    now[0] += 60
    clock.begin_steps(5)
    now[0] += 2
    assert clock.seconds_of_step(9) == 0.5


def test_a_damaged_file_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / SPENT).write_text('{"seconds": 3')
    assert spent_in([tmp_path]) == Spent(0, 0)
