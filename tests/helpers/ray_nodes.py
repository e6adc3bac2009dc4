"""Ray nodes on loopback, each with processes of its own, to be killed as machines are."""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from helpers import warm
from helpers.machine import command, descendants, free_ports, kill

# Ray reads these when it is imported. Without them a local cluster would leave a token in the home
# folder, and the next one started here would ask for it.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

# A lost node is noticed after seconds, not after half a minute; a lost head too.
WATCHFUL = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "8",
}

LATE = ("timed out during startup", "Failed to connect to GCS within")
"""What a node says that has ended as the machine was too busy."""


class Node:
    """One ``ray start --block`` and all that it starts; a head, or a node of a head's cluster."""

    alive: ClassVar[set["Node"]] = set()

    def __init__(
        self,
        *,
        cpus: int,
        head: "Node | None" = None,
        memory: int | None = None,
        hidden: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """``memory`` is what Ray may give away, in bytes. ``hidden`` is a folder in whose place
        this node sees an empty one. ``env`` are environment variables of this node alone."""
        # A short path: Ray keeps its sockets in it, and theirs may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="vr"))
        self.log = self.folder / "start.log"
        names = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
        names += ["runtime-env-agent-port", "metrics-export-port"]
        ports = free_ports(len(names) + 3)  # at once: asked twice, a port may be given twice
        own = [f"--{name}={free}" for name, free in zip(names, ports[3:], strict=True)]
        if head is None:
            self.port, self.dashboard, client = ports[:3]
            own += f"--head --port={self.port} --ray-client-server-port={client}".split()
            own += ["--include-dashboard=true", "--dashboard-host=127.0.0.1"]
            own += [f"--dashboard-port={self.dashboard}", f"--temp-dir={self.folder}"]
        else:
            own += [f"--address=127.0.0.1:{head.port}"]
        fixed = f"--block --num-cpus={cpus} --num-gpus=0 --node-ip-address=127.0.0.1"
        fixed += " --disable-usage-stats --object-store-memory=100000000"
        own += [] if memory is None else [f"--memory={memory}"]
        self._options = [*fixed.split(), *own]
        self._hidden, self._env = hidden, dict(env or {})
        self.process = self._start(self._options, hidden)
        Node.alive.add(self)

    def _start(self, options: list[str], hidden: Path | None) -> subprocess.Popen[bytes]:
        bin_folder = Path(sys.executable).parent
        forking = warm.SERVER in os.environ and hidden is None  # a fork sees what the server sees
        program = [sys.executable, warm.__file__, "node"] if forking else [str(bin_folder / "ray")]
        # What is mounted in a mount namespace is seen by those who were started in it.
        mount = f'mount -t tmpfs tmpfs {shlex.quote(str(hidden))} && exec "$@"'
        apart = ["unshare", "--mount", "sh", "-c", mount, "sh"] if hidden else []
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= TOKEN | WATCHFUL | {"PATH": f"{bin_folder}:{env['PATH']}"}
        # By itself Ray gives a worker as many threads as it has CPUs.
        env |= {warm.NODE: str(self.folder), "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as output:
            return subprocess.Popen(
                [*apart, *program, "start", *options],
                env=env | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"} | self._env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """The dashboard of a head."""
        return f"http://127.0.0.1:{self.dashboard}"

    def wait(self) -> None:
        """Until the dashboard of a head answers, or a node has joined.

        Ray gives a node 30 s to start, and ``WATCHFUL`` gives its control store 8 s: on a busy
        machine that takes another try.
        """
        give_up = time.monotonic() + 300
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                if not any(late in self.log.read_text() for late in LATE):
                    break
                kill(self.processes())
                self.process = self._start(self._options, self._hidden)
            with suppress(OSError):
                if self._is_up():
                    return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def _is_up(self) -> bool:
        if "Ray runtime started" not in self.log.read_text():
            return False  # a head's dashboard answers before its start has succeeded
        if not hasattr(self, "dashboard"):
            return True
        authorised = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.address}/api/version", headers=authorised)
        with urllib.request.urlopen(request, timeout=2):
            return True

    def processes(self) -> set[int]:
        """All that it started: its children, its forks, and whoever has its folder on it."""
        found = descendants(self.process.pid)
        forks = {int(file.name.removeprefix("fork_")) for file in self.folder.glob("fork_*")}
        found |= {pid for pid in forks if command(pid)}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    reported = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                    if str(self.folder).encode() in reported:
                        found.add(int(entry.name))
        return found

    def lose(self) -> None:
        """All of its processes are gone at once, as with a machine that loses its power."""
        kill({self.process.pid} | self.processes())
        self.process.wait()

    def stop(self) -> None:
        """Ends this node's processes, and no other's: `ray stop` ends all of the machine's."""
        Node.alive.discard(self)
        if self.process.poll() is None:
            self.lose()  # to be asked to end takes Ray 20 s
        shutil.rmtree(self.folder, ignore_errors=True)


def started(nodes: list[Node], **options: Any) -> Node:
    """A node that is up, which ends with the fixture ``nodes``.

    On a machine that is busy with other things Ray gives up starting one; then another is started.
    """
    for _ in range(2):
        nodes.append(Node(**options))
        with suppress(AssertionError):
            nodes[-1].wait()
            return nodes[-1]
    nodes.append(Node(**options))
    nodes[-1].wait()
    return nodes[-1]
