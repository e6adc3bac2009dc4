"""Starting or joining a Ray cluster, quietly, with one clear line if it is not there."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit

from vamf import cache
from vamf.cluster import signals
from vamf.cluster.nodes import alive, require_reached, require_room, require_seen
from vamf.cluster.quiet import mute_raylet, quieten
from vamf.cluster.reach import require_cluster
from vamf.cluster.scaling import Scaling
from vamf.cpus import usable
from vamf.files import brief
from vamf.redact import redacted
from vamf.store import Place, Store
from vamf.tracking.reasons import where
from vamf.tracking.run import database

CONNECT_SECONDS = 5.0
"""How long an address may take to accept a connection."""

TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Environment variables by which users say whether clusters have a token, and which."""


def connect() -> None:
    """Joins the cluster at ``RAY_ADDRESS``, or starts one on this machine.

    Raises ValueError if nothing answers at the address, or none can be started here.
    """
    import ray

    if ray.is_initialized():
        return
    quieten()
    mute_raylet()
    address = os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        cache.settle()  # Ray's processes take over the environment, and work in other folders
        _start()
    else:
        _join(address)
    signals.heed(again=True)


def _join(address: str) -> None:
    import ray

    _check(address)
    try:
        require_cluster(_found(address))
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # whatever its parts raise means the same to the user
        raise _absent(address, redacted(brief(error))) from None


def _found(address: str) -> str:
    """The address that Ray makes of what it is given, such as ``auto``."""
    from ray._private.services import canonicalize_bootstrap_address

    if address.startswith("ray://"):
        return address
    if address == "auto":  # as Ray does for this one alone: the token of the user's home
        from ray._private.authentication import authentication_token_setup as tokens

        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return str(canonicalize_bootstrap_address(address))


def _start(tries: int = 2) -> None:
    import ray

    _keep_token()
    # A process of each run under Ray Train looks for nodes that are drained: here is one node.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        # vamf keeps its data out of Ray's object store; the default would reserve a third of RAM.
        with _on_loopback():
            ray.init(
                address="local",
                num_cpus=usable(),  # Ray would count all of the machine's
                include_dashboard=False,
                object_store_memory=200 * 2**20,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # whatever its parts raise means the same to the user
        with suppress(Exception):
            ray.shutdown()  # what did start
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if "timed out" in reason and tries > 1:  # Ray gives a busy machine 30 s, fixed
            _start(tries - 1)
            return
        raise ValueError(f"Ray must start on this machine; got {reason}{_advice(error)}") from None


def _advice(error: Exception) -> str:
    """The way out of a folder in which Ray's files cannot be."""
    from ray._common.utils import get_default_system_temp_dir

    if "AF_UNIX path" not in str(error) and not isinstance(error, OSError):
        return ""
    return f"; RAY_TMPDIR must be a short, writable folder, now {get_default_system_temp_dir()}"


def _keep_token() -> None:
    """Gives the cluster that is to be started here a token that only its processes know.

    Ray alone would leave one in the user's home folder, and each later `ray start` would ask for
    it. What the environment says of tokens counts.
    """
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

    if not any(name in os.environ for name in TOKENS):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """While it lasts, Ray starts nodes that listen on 127.0.0.1 only, as it does on macOS.

    On Linux its ports, through which anybody may run code, are otherwise open to the network; Ray
    takes no address for them (``_node_ip_address="127.0.0.1"`` becomes that of the network).
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def leave() -> None:
    """Leaves the cluster, or ends it if this process started it; its actors and trials end."""
    import ray

    ray.shutdown()


def prepare(scaling: Scaling, storage: Place, uri: str, *, cluster: bool = False) -> Scaling:
    """Sees to it that what a run needs is there; a run of 0 workers alone needs no ``cluster``.

    Returns the scaling with its GPUs settled: 1 for each worker where the cluster has any. Raises
    ValueError if the cluster does not answer, lacks what the run takes, or has nodes that do not
    see the storage, or MLflow's database if it is a file beside a store.
    """
    if isinstance(storage, Store):
        storage.check()
    if scaling.workers == 0 and not cluster:
        quieten()
        return scaling
    if cluster and scaling.min_workers is not None:
        raise ValueError(
            "a search compares trials of the same number of workers; "
            f"got --scaling.min-workers {scaling.min_workers}"
        )
    connect()
    import ray

    if scaling.gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        scaling = replace(scaling, gpus=gpus)
    require_room(scaling)
    if len(alive()) > 1 or ray.util.client.ray.is_connected():
        anywhere = cluster and scaling.workers > 0  # a trial's own process then takes no CPU
        _require_shared(storage, uri, {} if anywhere else scaling.need)
    return scaling


def _require_shared(storage: Place, uri: str, need: Mapping[str, float]) -> None:
    if not isinstance(storage, Store):
        require_seen(storage.resolve(), need)
        return
    require_reached(storage, need)
    if (file := database(uri)) is not None:
        require_seen(file.parent, need, "MLflow's address must be a server's, or a file in ")


def _check(address: str) -> None:
    if address == "auto":
        return
    if address.startswith(("http://", "https://")):
        raise ValueError(f"RAY_ADDRESS must be HOST:6379 or ray://HOST:10001; got {where(address)}")
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        socket.create_connection(
            (parts.hostname or "", parts.port or 6379), CONNECT_SECONDS
        ).close()
    except (OSError, ValueError) as error:  # the latter: a port that is no number
        raise _absent(address, str(error)) from None


def _absent(address: str, why: str) -> ValueError:
    return ValueError(f"no Ray cluster answers at RAY_ADDRESS={where(address)}: {why}")


def log_folder() -> str | None:
    """Where the cluster that this process started keeps its full logs."""
    import ray

    node = ray._private.worker._global_node
    return node.get_logs_dir_path() if node is not None else None
