"""Logs the load of rank 0's machine beside a run's curves, if MLflow's own variable asks for it."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from vamf.tracking import Tracker

VARIABLE = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's environment variable: ``true`` asks for system metrics."""

EVERY_S = 10.0
"""Seconds between two measurements."""

MEGA = 1e6


@contextmanager
def logged(tracker: Tracker) -> Iterator[None]:
    """Within the block, and at its end, the machine's load is logged, if it was asked for.

    Under MLflow's names, ``system/...``; a point's step is its time in seconds.
    """
    if os.environ.get(VARIABLE, "").lower() not in ("true", "1"):
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_log, args=(tracker, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _log(tracker: Tracker, ended: threading.Event) -> None:
    before, last = _cpu_times(), False
    while not last:
        last = ended.wait(EVERY_S)
        now = _cpu_times()
        tracker.metrics(_cpu(before, now) | memory(), int(time.time()))
        before = now


def memory() -> dict[str, float]:
    """The memory in use, of the machine and of this process's GPU; only what can be read."""
    found: dict[str, float] = {}
    with suppress(OSError, KeyError, ValueError):  # another system than Linux
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines}
        total, free = kilobytes["MemTotal"], kilobytes["MemAvailable"]
        found["system/system_memory_usage_megabytes"] = (total - free) * 1024 / MEGA
        found["system/system_memory_usage_percentage"] = 100 * (total - free) / total
    if torch.cuda.is_available():
        left, whole = torch.cuda.mem_get_info()
        found["system/gpu_0_memory_usage_megabytes"] = (whole - left) / MEGA
        with suppress(Exception):  # NVIDIA's Python package is missing
            found["system/gpu_0_utilization_percentage"] = float(torch.cuda.utilization())
    return found


def _cpu_times() -> tuple[int, int] | None:
    """The clock ticks that all cores were busy, and all ticks, since the machine started."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _cpu(before: tuple[int, int] | None, now: tuple[int, int] | None) -> dict[str, float]:
    if before is None or now is None or now[1] <= before[1]:
        return {}
    busy = 100 * (now[0] - before[0]) / (now[1] - before[1])
    return {"system/cpu_utilization_percentage": busy}
