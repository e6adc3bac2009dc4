"""A real Ray cluster on the loopback interface, for the tests that need one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def processes_of(folder: Path) -> set[int]:
    """The processes that name the cluster's folder in their command or their environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if str(folder).encode() in told:
                    found.add(int(entry.name))
    return found


def descendants(pid: int) -> set[int]:
    children: set[int] = set()
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children |= {int(child) for child in listing.read_text().split()}
    return children.union(*(descendants(child) for child in children))


def start_head(folder: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    names = ("port", "ray-client-server-port", "dashboard-agent-listen-port")
    names += ("dashboard-agent-grpc-port", "runtime-env-agent-port")
    ports = [f"--{name}={free}" for name, free in zip(names, free_ports(5), strict=True)]
    fixed = "--head --block --num-cpus=2 --num-gpus=0 --node-ip-address=127.0.0.1"
    fixed += " --include-dashboard=true --dashboard-host=127.0.0.1 --disable-usage-stats"
    fixed += " --object-store-memory=100000000"
    place = [f"--temp-dir={folder}", f"--dashboard-port={port}"]
    bin_folder = Path(sys.executable).parent
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"PATH": f"{bin_folder}:{env['PATH']}", "VAMF_TEST_CLUSTER": str(folder)}
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(bin_folder / "ray"), "start", *fixed.split(), *ports, *place],
            env=env | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def stop_head(head: subprocess.Popen[bytes], folder: Path) -> None:
    """Ends this cluster's processes, and no other's: `ray stop` would end all of the machine's."""
    family = descendants(head.pid) | processes_of(folder)
    head.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        head.wait(20)
    for pid in family | processes_of(folder) | {head.pid}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait()


def wait_for(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 180
    while time.monotonic() < give_up and head.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{address}/api/version", timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def ray_head() -> Iterator[str]:
    """The dashboard's address of a one-node cluster with two CPUs, for Ray Jobs."""
    # A short path: Ray keeps its sockets in it, and theirs may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="vr"))
    (port,) = free_ports(1)
    log = folder / "start.log"
    head = start_head(folder, port, log)
    try:
        wait_for(f"http://127.0.0.1:{port}", head, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop_head(head, folder)
        shutil.rmtree(folder, ignore_errors=True)
