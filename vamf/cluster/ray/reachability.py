"""Checks within seconds that a cluster answers at an address; Ray would try for minutes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vamf.compat import ray as compat

ANSWER_S = 10.0
"""Seconds that a cluster may take to answer."""


class NoCluster(ConnectionError):
    """There is no cluster at an address that this process can join; says why."""


def require_cluster(address: str) -> None:
    """Raises NoCluster unless a cluster of this process's versions answers at an address.

    ``address`` is HOST:PORT, or ray://HOST:PORT for a Ray Client's server, which compares the
    versions itself. Nothing is printed.
    """
    client = address.startswith("ray://")
    with _channel(address.removeprefix("ray://")) as channel:
        if client:
            compat.ping_client_server(channel, ANSWER_S)
        else:
            _compare(compat.cluster_metadata(channel, ANSWER_S))


@contextmanager
def _channel(address: str) -> Iterator[Any]:
    """A gRPC channel with Ray's token and certificates; its errors become NoCluster."""
    from grpc import RpcError

    channel = compat.gcs_channel(address)
    try:
        yield channel
    except RpcError as error:
        raise NoCluster(_reason(error)) from None
    finally:
        channel.close()


def _reason(error: Any) -> str:
    from grpc import StatusCode

    if error.code() == StatusCode.UNAUTHENTICATED:
        return (
            "it wants its token: RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, or in a "
            "file, RAY_AUTH_TOKEN_PATH"
        )
    if error.code() == StatusCode.DEADLINE_EXCEEDED:
        return f"what listens there says nothing within {ANSWER_S:g} s"
    return "what is there is no cluster: one is at HOST:6379, or ray://HOST:10001"


def _compare(metadata: bytes) -> None:
    """Raises NoCluster with both versions if Ray finds that they do not fit."""
    theirs, ours = json.loads(metadata or b"{}"), compat.own_versions()
    if not theirs:  # a cluster that is starting; Ray checks again when it joins
        return
    try:
        compat.require_same_versions(theirs)
    except RuntimeError:
        there = f"Ray {theirs['ray_version']} and Python {theirs['python_version']}"
        raise NoCluster(
            f"versions must agree: {there} there, Ray {ours[0]} and Python {ours[1]} here"
        ) from None
