"""Ports and processes of this machine."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Waits; fails the test if it takes too long."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def descendants(pid: int) -> set[int]:
    """The processes that a process started, and those that they started."""
    children: set[int] = set()
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children |= {int(child) for child in listing.read_text().split()}
    return children.union(*(descendants(child) for child in children))


def command(pid: int) -> str:
    """A process's command line; empty once it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def train_workers() -> set[int]:
    """The Ray Train workers of the cluster that this process started."""
    return {pid for pid in descendants(os.getpid()) if "RayTrainWorker" in command(pid)}


def kill(pids: Iterable[int]) -> None:
    """Kills processes, those gone aside."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
