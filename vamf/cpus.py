"""Counts the CPUs that this process may use, which may be fewer than the machine has."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path


def usable(root: Path = Path("/")) -> int:
    """The minimum of what affinity, control groups and Slurm allow, at least 1.

    ``root`` is the root of the file system that describes the control groups.
    """
    try:
        own = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        own = os.cpu_count() or 1
    return max(1, math.floor(min([own, *_quotas(root), *_allocated()])))


def _allocated() -> Iterator[float]:
    """The CPUs that Slurm allocated; not every cluster binds tasks to their CPUs."""
    with suppress(ValueError):
        yield int(os.environ.get("SLURM_CPUS_PER_TASK", ""))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of this process's control groups and of those above them, in CPUs."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _above(root / "sys/fs/cgroup", path, _quota)
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                yield from _above(root / "sys/fs/cgroup" / mount, path, _older_quota)


def _above(mount: Path, path: str, quota: Callable[[Path], Iterator[float]]) -> Iterator[float]:
    """The quotas of a group, given by its path below a mount, and of the groups above it."""
    inner = Path(path.lstrip("/"))
    for folder in (inner, *inner.parents):  # a container does not show all of these folders
        with suppress(OSError, ValueError, ZeroDivisionError):
            yield from quota(mount / folder)


def _quota(group: Path) -> Iterator[float]:
    """Control groups version 2: microseconds in each period, or ``max``."""
    limit, period = (group / "cpu.max").read_text().split()
    if limit != "max":
        yield int(limit) / int(period)


def _older_quota(group: Path) -> Iterator[float]:
    """Control groups version 1: -1 if there is no quota."""
    limit = int((group / "cpu.cfs_quota_us").read_text())
    if limit > 0:
        yield limit / int((group / "cpu.cfs_period_us").read_text())
