"""Which nodes of a cluster have room for the workers of a run, and see its storage."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vamf.cluster.scaling import Scaling
from vamf.cluster.shared import marked, unseen
from vamf.store import Store

Amounts = Mapping[str, float]
"""Resources by Ray's names: CPU, GPU."""

LOOK_S = 2.0
"""Seconds between two looks for nodes that are being started."""


def places(need: Amounts, node: Amounts) -> int:
    """How many workers that need so much each would fit on a node, were it empty."""
    fits = (int(node.get(name, 0) / amount + 1e-9) for name, amount in need.items())
    return min(fits, default=1)


def groups(scaling: Scaling, nodes: Sequence[Amounts]) -> int:
    """How many such runs, of their fewest workers, would fit at once on these nodes when empty."""
    workers = max(scaling.fewest, 1)
    fits = [places(scaling.need, node) for node in nodes]
    if scaling.placement == "STRICT_PACK":
        return sum(fit // workers for fit in fits)
    if scaling.placement != "STRICT_SPREAD":
        return sum(fits) // workers
    count = 0  # a node holds one worker of each
    while sum(min(fit, count + 1) for fit in fits) >= workers * (count + 1):
        count += 1
    return count


def require_room(scaling: Scaling) -> None:
    """Raises ValueError if the run would not find room even if the cluster had nothing else to do.

    Waits as long as the scaling says for nodes to join; what is lacking is asked for, which makes a
    cluster that scales by itself start them.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    give_up, asked = time.monotonic() + scaling.wait, None
    try:
        while not groups(scaling, nodes := sizes()):
            if time.monotonic() >= give_up:
                lacking = missing(scaling, nodes)
                raise ValueError(f"the cluster must have room for a run; it needs {lacking}")
            bundles = [scaling.need] * max(scaling.fewest, 1)
            asked = asked or placement_group(bundles, strategy=scaling.placement)
            time.sleep(LOOK_S)
    finally:
        if asked is not None:
            remove_placement_group(asked)


def missing(scaling: Scaling, nodes: Sequence[Amounts]) -> str:
    """What a run needs, and what the nodes have, in words."""
    need, workers = scaling.need, max(scaling.fewest, 1)
    kinds = Counter(_words(node, need) for node in nodes)
    have = ", ".join(f"{count} x {node}" for node, count in kinds.most_common(4)) or "none"
    placed = "" if scaling.placement == "PACK" else f", placed {scaling.placement}"
    return f"{workers} x {_words(need, need)}, each on one node{placed}; nodes: {have}"


def _words(amounts: Amounts, like: Amounts) -> str:
    return " and ".join(f"{amounts.get(name, 0):g} {name}" for name in like)


def alive() -> list[dict[str, Any]]:
    """The nodes of the cluster, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def sizes() -> list[Amounts]:
    """What each of them has in all, whoever uses it."""
    return [node["Resources"] for node in alive()]


def require_seen(folder: Path, need: Amounts, what: str = "the storage must be ") -> None:
    """Raises ValueError, which names them, if nodes with room for so much do not see a folder."""
    with marked(folder) as mark:
        if blind := _not_told(os.path.exists, str(mark), need):
            raise unseen(mark.parent, blind, what)


def require_reached(store: Store, need: Amounts) -> None:
    """Raises ValueError, which names them, if nodes with room for so much do not reach a store."""
    with store.marked() as mark:
        if blind := _not_told(_holds, (store.url, mark), need):
            raise unseen(store, blind)


def _holds(place: tuple[str, str]) -> bool:
    url, name = place
    try:
        return name in Store(url).names()
    except (OSError, ValueError):
        return False


def _not_told(look: Callable[[Any], bool], argument: Any, need: Amounts) -> list[str]:
    """The nodes with room for so much on which a function is not true, in words."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in alive() if places(need, node["Resources"])]
    task = ray.remote(num_cpus=0)(look)
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    looks = [task.options(scheduling_strategy=node).remote(argument) for node in there]
    blind = []
    for node, seen in zip(nodes, looks, strict=True):
        with suppress(ray.exceptions.RayError):  # it is gone; workers look for themselves
            if not ray.get(seen):
                blind.append(f"node {node['NodeManagerHostname']} ({node['NodeName']})")
    return blind
