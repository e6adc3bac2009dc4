"""Starts or joins a Ray cluster, with an error of one line if that fails."""

import logging
import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from vamf import cache, signals
from vamf.cluster.ray import shared_gpu
from vamf.cluster.ray.capacity import (
    alive,
    require_capacity,
    require_shared_folder,
    require_shared_store,
)
from vamf.cluster.ray.log_filters import quieten
from vamf.cluster.ray.reachability import require_cluster
from vamf.cluster.ray.scaling import Scaling
from vamf.compat import ray as compat
from vamf.cpus import usable
from vamf.errors import first_line, one_line
from vamf.redact import redacted, without_credentials
from vamf.store import StoragePath, Store
from vamf.tracking.run import database

CONNECT_SECONDS = 5.0
"""Seconds that an address may take to accept a connection."""

TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Ray's environment variables for a cluster's token."""


def connect() -> None:
    """Joins the cluster at ``RAY_ADDRESS``, or starts one on this machine.

    Raises ValueError if nothing answers at the address, or none can be started here.
    """
    import ray

    if ray.is_initialized():
        return
    quieten()
    compat.mute_node_errors()
    address = os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        cache.make_absolute()  # Ray's processes inherit the environment, in other folders
        _start()
    else:
        _join(address)
    signals.handle_signals(again=True)


def _join(address: str) -> None:
    import ray

    _check(address)
    try:
        require_cluster(_resolved(address))
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # the libraries below raise exceptions of many kinds
        raise _unreachable(address, redacted(one_line(error))) from None


def _resolved(address: str) -> str:
    """The address that Ray resolves another one to, such as ``auto``."""
    if address.startswith("ray://"):
        return address
    if address == "auto":  # for which alone Ray reads the token in the user's home folder
        compat.use_home_token()
    return compat.bootstrap_address(address)


def _start(tries: int = 2) -> None:
    import ray

    _set_token()
    # Each run under Ray Train would start a process that watches for nodes being drained.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        # vamf does not use Ray's object store, which would reserve a third of the memory.
        with compat.listening_on_loopback():
            ray.init(
                address="local",
                num_cpus=usable(),  # by default all of the machine's
                include_dashboard=False,
                object_store_memory=200 * 2**20,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # the libraries below raise exceptions of many kinds
        with suppress(Exception):
            ray.shutdown()  # the processes that did start
        reason = first_line(error)
        if "timed out" in reason and tries > 1:  # Ray waits 30 s, which a busy machine may exceed
            _start(tries - 1)
            return
        raise ValueError(f"Ray must start on this machine; got {reason}{_advice(error)}") from None


def _advice(error: Exception) -> str:
    """The end of a message if Ray cannot use its folder: which variable sets it."""
    if "AF_UNIX path" not in str(error) and not isinstance(error, OSError):
        return ""
    return f"; RAY_TMPDIR must be a short, writable folder, now {compat.default_temp_dir()}"


def _set_token() -> None:
    """Creates a token for the cluster that is to be started here, unless the user has set one.

    Ray would write a token to the user's home folder, and each later `ray start` would require it.
    """
    if not any(name in os.environ for name in TOKENS):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        compat.reload_token()


def leave() -> None:
    """Leaves the cluster, or stops it if this process started it; actors and trials end."""
    import ray

    ray.shutdown()


def prepare(scaling: Scaling, storage: StoragePath, uri: str, *, cluster: bool = False) -> Scaling:
    """Connects to a cluster if the run needs one, and checks its capacity and the storage.

    With ``cluster`` a run of 0 workers needs one, too. Returns the scaling with its number of GPUs:
    by default 1 for each worker if the cluster has any. Raises ValueError if the cluster does not
    answer or is too small, or if nodes do not see the storage, or MLflow's database file where the
    storage is a store.
    """
    if isinstance(storage, Store):
        storage.check()
    if scaling.workers == 0 and not cluster:
        _require_own_gpu(scaling.gpus or 0)
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
    require_capacity(scaling)
    if len(alive()) > 1 or compat.is_client():
        on_any_node = cluster and scaling.workers > 0  # a trial's own process then takes no CPU
        _require_shared(storage, uri, {} if on_any_node else scaling.need)
    shared_gpu.advise(scaling.gpus or 0)
    return scaling


def _require_own_gpu(gpus: float) -> None:
    """Raises ValueError if a run in this process cannot have so many GPUs."""
    import torch

    here = torch.cuda.device_count() if gpus else 0
    if gpus > min(here, 1):
        raise ValueError(
            f"a run without workers needs scaling.gpus of at most {min(here, 1)}, as this machine "
            f"has {here} GPUs and one process takes one; got {gpus:g}"
        )


def _require_shared(storage: StoragePath, uri: str, need: Mapping[str, float]) -> None:
    if not isinstance(storage, Store):
        require_shared_folder(storage.resolve(), need)
        return
    require_shared_store(storage, need)
    if (file := database(uri)) is not None:
        require_shared_folder(
            file.parent, need, "MLflow's address must be a server's, or a file in "
        )


def _check(address: str) -> None:
    if address == "auto":
        return
    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"RAY_ADDRESS must be HOST:6379 or ray://HOST:10001; got {without_credentials(address)}"
        )
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        socket.create_connection(
            (parts.hostname or "", parts.port or 6379), CONNECT_SECONDS
        ).close()
    except (OSError, ValueError) as error:  # the latter: a port that is not a number
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, why: str) -> ValueError:
    return ValueError(
        f"no Ray cluster answers at RAY_ADDRESS={without_credentials(address)}: {why}"
    )


def log_folder() -> str | None:
    """The folder of the cluster's logs; None without a cluster, or by Ray Client."""
    import ray

    if not ray.is_initialized() or compat.is_client():
        return None
    context = ray.get_runtime_context()
    return str(Path(context.get_temp_dir(), context.get_session_name(), "logs"))
