"""Real Ray clusters and a real MLflow database, for the tests that need them."""

import atexit
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from machine import descendants, free_ports, kill

# Ray reads these when it is imported. Without them a local cluster would leave a token in the home
# folder, and the next one started here would ask for it.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ.update(TOKEN)

# Reference statistics are kept in the user's cache folder; those of tests are not.
os.environ["VAMF_CACHE"] = tempfile.mkdtemp(prefix="vamf-cache")
atexit.register(shutil.rmtree, os.environ["VAMF_CACHE"], ignore_errors=True)


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
    env |= TOKEN | {"PATH": f"{bin_folder}:{env['PATH']}", "VAMF_TEST_CLUSTER": str(folder)}
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
    kill(family | processes_of(folder) | {head.pid})
    head.wait()


def wait_for(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    authorised = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{address}/api/version", headers=authorised)
    give_up = time.monotonic() + 180
    while time.monotonic() < give_up and head.poll() is None:
        with suppress(OSError), urllib.request.urlopen(request, timeout=2):
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


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """The cluster that a run starts on this machine, shared by all tests of this process."""
    import ray

    from vamf.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        connect.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SQLite database of MLflow's: making its tables takes seconds, so tests share it."""
    from vamf import tracking

    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"
    tracking.check(uri)
    return uri
