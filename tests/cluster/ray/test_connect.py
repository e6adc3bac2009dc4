"""A cluster that is not there, or cannot be, is one line."""

import json
import os
import platform
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
from helpers.tree import ROOT
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from vamf.cluster.ray import connect, reachability
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.failures import as_driver_error, is_final, too_many_failures
from vamf.errors import RunFailed, StorageUnusable, StoreError

KEYS = ("ray_version", "python_version")
RAY, PYTHON = ray.__version__, platform.python_version()


@pytest.mark.slow
def test_a_cluster_that_cannot_start_here_is_one_line(tmp_path: Path) -> None:
    """Ray's sockets lie in its folder, and a socket's name has at most 107 characters.

    Nor does it leave a token, for which every later `ray start` of the user would ask.
    """
    folder, home = tmp_path / ("x" * 120), tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.train", "digits", "--scaling.workers", "1", "--name", "a"],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "HOME": str(home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = (line for line in ended.stderr.splitlines() if "mlflow.store" not in line)
    assert line.startswith("error: Ray must start on this machine; got ")
    assert "107 bytes" in line
    assert line.endswith(f"; RAY_TMPDIR must be a short, writable folder, now {folder}")
    assert not (home / ".ray").exists()
    assert not (tmp_path / "runs" / "a").exists()


def test_a_token_of_the_users_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    connect._set_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "b" * 64


def test_ray_train_is_the_version_that_is_used_here() -> None:
    code = "import vamf.cluster.train.fit; from ray.train import UserCallback"
    environment = os.environ | {"RAY_TRAIN_V2_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=["HTTP", "silent"])
def stranger(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a service that is not Ray's."""
    monkeypatch.setattr(reachability, "ANSWER_S", 0.5)
    if request.param == "HTTP":
        with ThreadingHTTPServer(("", 0), Quiet) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_port
            server.shutdown()
    else:
        with socket.create_server(("", 0)) as silent:
            yield silent.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_another_service_is_one_line(
    scheme: str, stranger: int, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"{scheme}127.0.0.1:{stranger}"
    with pytest.raises(ValueError, match=r"what (is|listens) there") as caught:
        connect._join(address)
    assert str(caught.value).startswith(f"no Ray cluster answers at RAY_ADDRESS={address}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


class Store(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):  # type: ignore[misc]
    """What a Ray head answers when it is asked for its versions."""

    def __init__(self, reported: str | None) -> None:
        self.reported = reported

    def InternalKVGet(self, request: Any, context: Any) -> Any:
        if self.reported is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        assert (request.key, request.namespace) == (b"CLUSTER_METADATA", b"cluster")
        return gcs_service_pb2.InternalKVGetReply(value=self.reported.encode())


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        (("2.9.3", PYTHON), f"Ray 2.9.3 and Python {PYTHON} there, Ray {RAY} and Python {PYTHON}"),
        ((RAY, "3.9.18"), f"Ray {RAY} and Python 3.9.18 there, Ray {RAY} and Python {PYTHON}"),
        (None, "RAY_AUTH_TOKEN"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line(
    versions: tuple[str, str] | None, said: str
) -> None:
    reported = versions and json.dumps(dict(zip(KEYS, versions, strict=True)))
    server = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Store(reported), server)
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        with pytest.raises(ValueError, match=re.escape(said)) as caught:
            connect._join(f"127.0.0.1:{port}")
    finally:
        server.stop(None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "127.0.0.1:1", "ray://127.0.0.1:1", "a:b"]
)
def test_an_address_without_a_cluster_is_one_line(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="RAY_ADDRESS") as caught:
        connect._check(address)
    assert address in str(caught.value) and "\n" not in str(caught.value)


def test_only_what_would_come_again_is_final() -> None:
    for error in (ValueError(), TypeError(), KeyError(), OSError(28, "No space left on device")):
        assert is_final(error), error
    for passing in (RuntimeError("Connection closed by peer"), OSError(5, "I/O"), MemoryError()):
        assert not is_final(passing), passing


def test_a_failure_is_one_line_and_its_traceback_a_file(tmp_path: Path) -> None:
    error = TypeError("a\nb")
    error.add_note("Traceback ...\nTypeError: a\nb")
    reported = as_driver_error(error, tmp_path)
    assert isinstance(reported, RunFailed)
    assert str(reported) == f"TypeError: a; traceback in {tmp_path / 'error.txt'}"
    assert (tmp_path / "error.txt").read_text() == "Traceback ...\nTypeError: a\nb\n"
    last = too_many_failures({1: RuntimeError("Connection closed by peer\nmore")}, 3, tmp_path)
    assert str(last).startswith(
        "workers failed more than 3 times, the last time rank 1 with "
        "RuntimeError: Connection closed by peer; more in "
    )


@pytest.mark.parametrize(("here", "gpus"), [(0, 0.25), (0, 1.0), (4, 2.0)])
def test_a_run_in_this_process_takes_one_gpu_if_there_is_one(
    here: int, gpus: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: here)
    with pytest.raises(ValueError, match=rf"of at most {min(here, 1)}, .* has {here} GPUs .*got"):
        connect.prepare(Scaling(gpus=gpus), tmp_path, "")
    for fits in (None, 0.0, *([0.5, 1.0] if here else [])):
        assert connect.prepare(Scaling(gpus=fits), tmp_path, "").gpus == fits


def test_a_store_that_does_not_answer_is_no_failure_of_the_run(tmp_path: Path) -> None:
    away = too_many_failures({0: StoreError("s3://b: away")}, 3, tmp_path)
    assert isinstance(away, StorageUnusable)
    assert not isinstance(too_many_failures({0: OSError("away")}, 3, tmp_path), StorageUnusable)
