"""Ray workers for the tests, forked from a process that has imported torch.

A run under Ray Train has six processes beside its driver, and each imports for seconds of a core.
Ray starts this file where it would start its ``setup_worker.py``; it asks the server,
``python warm.py serve SOCKET``, for a fork that does the work. Where there is no server, or a
worker needs an environment of its own, it is ``setup_worker.py``. Drivers are started as users
start them.
"""

import argparse
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = "VAMF_TEST_WARM"
"""The environment variable with the address of the server's socket."""

NODE = "VAMF_TEST_NODE"
"""The environment variable with the folder of a node, in which its forks leave their numbers."""

# Not Ray itself: its random numbers, and with them its objects' names, would be those of all forks.
MODULES = ["aiohttp", "google.protobuf", "mlflow.tracking", "optuna", "pandas", "pyarrow.dataset"]
MODULES += ["pyarrow.fs", "requests", "scipy.linalg", "torchvision"]
MODULES += ["torch._dynamo", "torch.distributed", "torch.func"]


def setup() -> None:
    """What Ray runs, with a worker's own command line among the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    reported, command = parser.parse_known_args()
    context = json.loads(reported.serialized_runtime_env_context)
    prefix = context.get("command_prefix") or []
    if SERVER in os.environ and (not prefix or (prefix[0], prefix[2:]) == ("cd", ["&&"])):
        variables = {k: os.path.expandvars(v) for k, v in context.get("env_vars", {}).items()}
        folder = prefix[1] if prefix else str(Path.cwd())
        ask = json.dumps([command, {**os.environ, **variables}, folder]).encode()
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(os.environ[SERVER])
            socket.send_fds(server, [len(ask).to_bytes(4, "big")], [0, 1, 2])
            server.sendall(ask)
            server.recv(1)  # until the worker has ended
    else:
        import ray._private.workers as workers

        own = Path(workers.__path__[0]) / "setup_worker.py"
        os.execv(sys.executable, [sys.executable, str(own), *sys.argv[1:]])


def serve(address: str) -> None:
    """Imports, and then forks a worker for each that asks."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        for module in MODULES:
            __import__(module)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            client, _ = listener.accept()
            size, files, _, _ = socket.recv_fds(client, 4, 3)
            if os.fork() == 0:
                listener.close()
                with client.makefile("rb") as stream:
                    ask = json.loads(stream.read(int.from_bytes(size, "big")))
                work(*ask, files)
            client.close()
            for file in files:
                os.close(file)


def work(argv: list[str], env: dict[str, str], folder: str, files: list[int]) -> None:
    """Becomes a Ray worker."""
    os.setpgid(0, 0)  # Ray kills the group of a worker that ends
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if NODE in env:
        (Path(env[NODE]) / f"fork_{os.getpid()}").touch()
    for own, file in enumerate(files):
        os.dup2(file, own)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = argv
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [str(Path(argv[0]).parent), *paths]
    runpy.run_path(argv[0], run_name="__main__")
    os._exit(0)


@contextmanager
def serving() -> Iterator[None]:
    """While it lasts, a server is there, and clusters that this process starts use it."""
    import pytest
    from ray._private import ray_constants

    with tempfile.TemporaryDirectory(prefix="vw") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(SERVER, f"{folder}/server")
        patch.setattr(ray_constants, "SETUP_WORKER_FILENAME", str(Path(__file__).resolve()))
        server = subprocess.Popen([sys.executable, __file__, "serve", os.environ[SERVER]])
        try:
            yield
        finally:
            server.kill()
            server.wait()


def start_node() -> None:
    """``ray start`` of a node whose workers are forks."""
    from ray._private import ray_constants
    from ray.scripts.scripts import main

    ray_constants.SETUP_WORKER_FILENAME = str(Path(__file__).resolve())
    sys.argv[:2] = ["ray"]
    main()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    elif sys.argv[1] == "node":
        start_node()
    else:
        setup()
