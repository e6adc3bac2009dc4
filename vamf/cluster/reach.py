"""Whether a cluster answers at an address: asked at once, where Ray would try for minutes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_S = 10.0
"""Seconds that a cluster may take to answer."""


class NoCluster(ConnectionError):
    """What listens at an address is no cluster that this process can join; says why."""


def require_cluster(address: str) -> None:
    """Raises NoCluster unless a cluster of this process's versions answers at an address.

    ``address`` is HOST:PORT, or ray://HOST:PORT for a Ray Client's server, which compares the
    versions itself. Nothing is said to the terminal.
    """
    client = address.startswith("ray://")
    with _answering(address.removeprefix("ray://")) as channel:
        if client:
            _ping(channel)
        else:
            _compare(_versions(channel))


@contextmanager
def _answering(place: str) -> Iterator[Any]:
    """A connection of Ray's own kind: with its token, and its certificates."""
    from grpc import RpcError
    from ray._private.gcs_utils import create_gcs_channel

    channel = create_gcs_channel(place)
    try:
        yield channel
    except RpcError as error:
        raise NoCluster(_why(error)) from None
    finally:
        channel.close()


def _why(error: Any) -> str:
    from grpc import StatusCode

    if error.code() == StatusCode.UNAUTHENTICATED:
        return (
            "it wants its token: RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, or in a "
            "file, RAY_AUTH_TOKEN_PATH"
        )
    if error.code() == StatusCode.DEADLINE_EXCEEDED:
        return f"what listens there says nothing within {ANSWER_S:g} s"
    return "what is there is no cluster: one is at HOST:6379, or ray://HOST:10001"


def _ping(channel: Any) -> None:
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(ping, timeout=ANSWER_S)


def _versions(channel: Any) -> bytes:
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    asked = gcs_service_pb2.InternalKVGetRequest(
        key=b"CLUSTER_METADATA", namespace=KV_NAMESPACE_CLUSTER
    )
    stub = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
    return bytes(stub.InternalKVGet(asked, timeout=ANSWER_S).value)


def _compare(told: bytes) -> None:
    """Raises NoCluster, which names both, if Ray finds that versions do not go together."""
    from ray._private.utils import check_version_info, compute_version_info

    theirs, ours = json.loads(told or b"{}"), compute_version_info()
    if not theirs:  # a cluster that is starting, or does not say: Ray asks again
        return
    try:
        check_version_info(theirs, "this machine")
    except RuntimeError:
        there = f"Ray {theirs['ray_version']} and Python {theirs['python_version']}"
        raise NoCluster(
            f"versions must agree: {there} there, Ray {ours[0]} and Python {ours[1]} here"
        ) from None
