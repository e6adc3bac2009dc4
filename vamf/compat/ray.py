"""The private and unstable names of Ray that vamf uses."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UPLOAD_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
"""The loggers of the modules that upload a job's folder. If they move, uploads are logged."""


def bootstrap_address(address: str) -> str:
    """HOST:PORT of the cluster that Ray would join by an address such as ``auto``.

    Private: ``services.canonicalize_bootstrap_address``. Without it a cluster cannot be checked
    before Ray joins it, and an address without a cluster blocks for minutes.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return str(canonicalize_bootstrap_address(address))


def use_home_token() -> None:
    """Turns authentication on if the user's home folder holds a token, as ``auto`` does in Ray.

    Private: ``authentication_token_setup.maybe_enable_token_auth_if_token_available``. Without it
    the check of a cluster with a token is refused.
    """
    from ray._private.authentication import authentication_token_setup as tokens

    tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def reload_token() -> None:
    """Has Ray read its token again, as the environment variable has changed.

    Private: ``AuthenticationTokenLoader.reset_cache``. Without it Ray may keep an old token.
    """
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

    AuthenticationTokenLoader.instance().reset_cache()


def default_temp_dir() -> str:
    """The folder below which Ray puts its sessions, before it is started.

    Private: ``ray._common.utils.get_default_system_temp_dir``. Without it an error message cannot
    name the folder that is too long or not writable.
    """
    from ray._common.utils import get_default_system_temp_dir

    return str(get_default_system_temp_dir())


@contextmanager
def listening_on_loopback() -> Iterator[None]:
    """Within the block, Ray starts nodes that listen on 127.0.0.1 only, as it does on macOS.

    Private: ``ray_constants.ENABLE_RAY_CLUSTER``. Without it the ports, through which anybody may
    run code, are open to the network on Linux. Ray has no option for it:
    ``_node_ip_address="127.0.0.1"`` is replaced by the network's address.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def mute_node_errors() -> None:
    """Stops the driver from printing what the node processes report of a worker's death.

    Private: ``worker.listen_error_messages``. Without it a lost worker prints a screenful, which
    ``log_to_driver=False`` does not prevent.
    """
    import ray._private.worker

    ray._private.worker.listen_error_messages = lambda *_: None


def is_client() -> bool:
    """Whether this process reached its cluster by Ray Client, ``ray://``.

    Unstable: ``ray.util.client.ray``. Without it the storage is not checked on the nodes of a
    remote cluster that has one node only.
    """
    import ray

    return bool(ray.util.client.ray.is_connected())


def gcs_channel(address: str) -> Any:
    """A gRPC channel to HOST:PORT with Ray's token and certificates; close it after use.

    Private: ``gcs_utils.create_gcs_channel``. Without it a cluster cannot be checked before Ray
    joins it.
    """
    from ray._private.gcs_utils import create_gcs_channel

    return create_gcs_channel(address)


def ping_client_server(channel: Any, timeout_s: float) -> None:
    """Calls a server of Ray Client; raises grpc.RpcError unless it answers in time.

    Unstable: ``ray.core.generated.ray_client_pb2``. Without it a wrong ``ray://`` address blocks
    for half a minute.
    """
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(ping, timeout=timeout_s)


def cluster_metadata(channel: Any, timeout_s: float) -> bytes:
    """What a cluster says of its versions, as JSON; empty while it is starting.

    Private: the key ``CLUSTER_METADATA`` of Ray's key-value store, ``KV_NAMESPACE_CLUSTER`` and
    ``ray.core.generated.gcs_service_pb2``. Without it different versions are not noticed, and what
    is no cluster blocks for minutes.
    """
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    request = gcs_service_pb2.InternalKVGetRequest(
        key=b"CLUSTER_METADATA", namespace=KV_NAMESPACE_CLUSTER
    )
    stub = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
    return bytes(stub.InternalKVGet(request, timeout=timeout_s).value)


def own_versions() -> tuple[str, ...]:
    """The versions of Ray and of Python, and more, of this process.

    Private: ``utils.compute_version_info``. Without it an error message cannot name them.
    """
    from ray._private.utils import compute_version_info

    return tuple(compute_version_info())


def require_same_versions(metadata: dict[str, Any]) -> None:
    """Raises RuntimeError unless a cluster's versions fit this process's, by Ray's own rules.

    Private: ``utils.check_version_info``. Without it joining such a cluster fails later, with a
    traceback.
    """
    from ray._private.utils import check_version_info

    check_version_info(metadata, "this machine")


@contextmanager
def cluster_named() -> Iterator[None]:
    """Within the block, the processes that Ray Train starts are told which cluster is theirs.

    Private: ``ENV_VARS_TO_PROPAGATE``. Without it the process that frees the resources of a run
    whose own process died looks for "the" cluster on its machine: where there are two it fails, and
    the run that is to resume waits for ever.
    """
    import ray
    from ray.train.v2._internal import constants

    if is_client():  # the trainer's own processes are started elsewhere
        yield
        return
    name = "RAY_ADDRESS"
    before = os.environ.get(name)
    constants.ENV_VARS_TO_PROPAGATE.add(name)
    os.environ[name] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def progress_callback() -> Any:
    """The class of Ray Tune's callback that prints progress; if a search has one, Ray adds none.

    Unstable: ``ray.tune.progress_reporter.TrialProgressCallback``. Without it Ray prints a table
    for each report beside vamf's lines.
    """
    from ray.tune.progress_reporter import TrialProgressCallback

    return TrialProgressCallback


def times_failed(trial: Any) -> int:
    """How often the process of a trial of Ray Tune has died so far.

    Unstable: ``Trial.num_failures``. Without it a trial that Ray restarts is recorded as failed.
    """
    return int(trial.num_failures)


def raised(trial: Any) -> Exception | None:
    """The error that the code of a trial of Ray Tune raised last; None if its process died.

    Unstable: ``Trial.get_pickled_error``. Without it all trials that Ray restarts are said to have
    lost their process.
    """
    from ray.exceptions import RayTaskError

    error = trial.get_pickled_error()
    return error.cause if isinstance(error, RayTaskError) else None


def upload_limit() -> int:
    """The largest folder of a job, in bytes, that Ray's head node takes.

    Private: ``packaging.GCS_STORAGE_MAX_SIZE``. Without it a folder is refused only once it is
    packed, and without a list of its largest files.
    """
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return int(GCS_STORAGE_MAX_SIZE)


def visit_uploaded(root: Path, excludes: Sequence[str], visit: Callable[[Path], None]) -> None:
    """Calls a function for each file and folder that Ray would upload of a job's folder.

    ``excludes`` are lines of a .gitignore. Private: ``packaging._dir_travel`` and
    ``packaging._get_excludes``. Without them the size of an upload is not known beforehand.
    """
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    quiet = logging.Logger("quiet", logging.CRITICAL)
    _dir_travel(root, [_get_excludes(root, list(excludes))], visit, True, quiet)
