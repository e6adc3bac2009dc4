"""An S3 server of this machine's own (moto), with a bucket, that can be killed and started."""

import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from helpers.machine import free_ports, kill

KEYS = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
"""It takes any."""


class Server:
    """``moto_server`` on loopback; what it holds is lost with it."""

    def __init__(self, log: Path) -> None:
        self.port, self._log = free_ports(1)[0], log
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=log,
            )
        give_up = time.monotonic() + 120
        while time.monotonic() < give_up:
            bucket = urllib.request.Request(f"{self.address}/bucket", method="PUT")
            with suppress(OSError), urllib.request.urlopen(bucket, timeout=5):
                return
            time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def url(self, path: str) -> str:
        """The address of a place in the bucket."""
        return f"s3://bucket/{path}?endpoint_override={self.address}&region=us-east-1"

    def refuse(self, keys: bool) -> None:
        """Knows nobody's keys from here on, as when they have run out; or everybody's again."""
        allowed = b"0" if keys else b"inf"
        kind = {"Content-Type": "text/plain"}
        request = urllib.request.Request(
            f"{self.address}/moto-api/reset-auth", data=allowed, headers=kind, method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()

    def stop(self) -> None:
        if self.process is not None:
            kill({self.process.pid})
            self.process.wait()
            self.process = None
