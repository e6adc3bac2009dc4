"""Checks that nodes of a cluster have the capacity for a run's workers and share its storage."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.ray.storage_check import not_shared, probe_file
from vamf.store import Store

Amounts = Mapping[str, float]
"""Resources by Ray's names: CPU, GPU."""

LOOK_S = 2.0
"""Seconds between two checks for new nodes."""


def workers_that_fit(need: Amounts, node: Amounts) -> int:
    """How many workers, each with this need, fit on an empty node."""
    fits = (int(node.get(name, 0) / amount + 1e-9) for name, amount in need.items())
    return min(fits, default=1)


def runs_that_fit(scaling: Scaling, nodes: Sequence[Amounts]) -> int:
    """How many runs, each with its fewest workers, fit at once on these nodes if they are empty."""
    workers = max(scaling.fewest, 1)
    fits = [workers_that_fit(scaling.need, node) for node in nodes]
    if scaling.placement == "STRICT_PACK":
        return sum(fit // workers for fit in fits)
    if scaling.placement != "STRICT_SPREAD":
        return sum(fits) // workers
    count = 0  # a node takes one worker of each run
    while sum(min(fit, count + 1) for fit in fits) >= workers * (count + 1):
        count += 1
    return count


def require_capacity(scaling: Scaling) -> None:
    """Raises ValueError if the run does not fit on the cluster's nodes even if they are empty.

    Waits ``scaling.wait`` seconds for nodes to join. Meanwhile a placement group requests the
    resources, so that an autoscaling cluster starts nodes.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    deadline, requested = time.monotonic() + scaling.wait, None
    try:
        while not runs_that_fit(scaling, nodes := sizes()):
            if time.monotonic() >= deadline:
                lacking = shortage(scaling, nodes)
                raise ValueError(f"the cluster must have room for a run; it needs {lacking}")
            bundles = [scaling.need] * max(scaling.fewest, 1)
            requested = requested or placement_group(bundles, strategy=scaling.placement)
            time.sleep(LOOK_S)
    finally:
        if requested is not None:
            remove_placement_group(requested)


def shortage(scaling: Scaling, nodes: Sequence[Amounts]) -> str:
    """A description of what a run needs and of what the nodes have."""
    need, workers = scaling.need, max(scaling.fewest, 1)
    kinds = Counter(_described(node, need) for node in nodes)
    have = ", ".join(f"{count} x {node}" for node, count in kinds.most_common(4)) or "none"
    placed = "" if scaling.placement == "PACK" else f", placed {scaling.placement}"
    return f"{workers} x {_described(need, need)}, each on one node{placed}; nodes: {have}"


def _described(amounts: Amounts, like: Amounts) -> str:
    return " and ".join(f"{amounts.get(name, 0):g} {name}" for name in like)


def alive() -> list[dict[str, Any]]:
    """The nodes that are alive, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def sizes() -> list[Amounts]:
    """The resources of each node that is alive, whether they are in use or not."""
    return [node["Resources"] for node in alive()]


def require_shared_folder(folder: Path, need: Amounts, what: str = "the storage must be ") -> None:
    """Raises ValueError that names the nodes with this capacity that do not see a folder."""
    with probe_file(folder) as probe:
        if nodes := _nodes_that_fail(os.path.exists, str(probe), need):
            raise not_shared(probe.parent, nodes, what)


def require_shared_store(store: Store, need: Amounts) -> None:
    """Raises ValueError that names the nodes with this capacity that do not reach a store."""
    with store.probe_object() as name:
        if nodes := _nodes_that_fail(_has_object, (store.url, name), need):
            raise not_shared(store, nodes)


def _has_object(url_and_name: tuple[str, str]) -> bool:
    url, name = url_and_name
    try:
        return name in Store(url).names()
    except (OSError, ValueError):
        return False


def _nodes_that_fail(check: Callable[[Any], bool], argument: Any, need: Amounts) -> list[str]:
    """Descriptions of the nodes with this capacity on which a check returns False."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in alive() if workers_that_fit(need, node["Resources"])]
    task = ray.remote(num_cpus=0)(check)
    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    results = [task.options(scheduling_strategy=s).remote(argument) for s in strategies]
    failing = []
    for node, result in zip(nodes, results, strict=True):
        with suppress(ray.exceptions.RayError):  # the node is lost; workers check again
            if not ray.get(result):
                failing.append(f"node {node['NodeManagerHostname']} ({node['NodeName']})")
    return failing
