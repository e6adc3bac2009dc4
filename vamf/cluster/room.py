"""Which nodes of a cluster have room for the workers of a run, and see its storage."""

import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

Amounts = Mapping[str, float]
"""Resources by Ray's names: CPU, GPU."""

LOOK_S = 2.0
"""Seconds between two looks for nodes that are being started."""


def places(need: Amounts, node: Amounts) -> int:
    """How many workers that need so much each would fit on a node, were it empty."""
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in need.items())


def room(need: Amounts, placement: Placement, nodes: list[Amounts]) -> int:
    """How many such workers would fit on empty nodes, placed in that way."""
    fits = [places(need, node) for node in nodes]
    if placement == "STRICT_PACK":
        return max(fits, default=0)
    return sum(map(bool, fits)) if placement == "STRICT_SPREAD" else sum(fits)


def require_room(need: Amounts, workers: int, placement: Placement, wait: float = 0) -> None:
    """Raises ValueError if the workers would not fit on all of the cluster's nodes, were they idle.

    Waits that many seconds for nodes to join; what is lacking is asked for, which makes a cluster
    that scales by itself start them.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    give_up = time.monotonic() + wait
    if _room(need, placement) >= workers:
        return
    asked = placement_group([dict(need)] * workers, strategy=placement) if wait else None
    try:
        while (found := _room(need, placement)) < workers:
            if time.monotonic() >= give_up:
                raise ValueError(_lacking(need, workers, placement, found))
            time.sleep(LOOK_S)
    finally:
        if asked is not None:
            remove_placement_group(asked)


def _lacking(need: Amounts, workers: int, placement: Placement, found: int) -> str:
    each = _told(need)
    nodes = Counter(_told({n: node["Resources"].get(n, 0) for n in need}) for node in alive())
    have = ", ".join(f"{count} x {node}" for node, count in nodes.most_common())
    return (
        f"the cluster must have room for {workers} x {each}, placed {placement}; "
        f"got room for {found}, its nodes being {have}"
    )


def _told(amounts: Amounts) -> str:
    return "(" + ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) + ")"


def _room(need: Amounts, placement: Placement) -> int:
    return room(need, placement, [node["Resources"] for node in alive()])


def alive() -> list[dict[str, Any]]:
    """The nodes of the cluster, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """A file in a folder, by which other nodes know that they see the same one.

    Of a new name each time: a network's file system may remember which names were not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".seen_{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def unseen(mark: Path, nodes: list[str]) -> ValueError:
    """The refusal of storage in which some nodes do not find the mark."""
    return ValueError(
        f"the storage must be a folder that all nodes see; got {mark.parent}, "
        f"in which {', '.join(nodes)} cannot see the run's files"
    )


def require_seen(folder: Path, need: Amounts) -> None:
    """Raises ValueError, which names them, if nodes with room for a worker do not see a folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in alive() if places(need, node["Resources"])]
    look = ray.remote(num_cpus=0)(os.path.exists)
    blind = []
    with marked(folder) as mark:
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        looks = [look.options(scheduling_strategy=node).remote(str(mark)) for node in there]
        for node, seen in zip(nodes, looks, strict=True):
            with suppress(ray.exceptions.RayError):  # it is gone; workers look for themselves
                if not ray.get(seen):
                    blind.append(f"node {node['NodeManagerHostname']} ({node['NodeName']})")
    if blind:
        raise unseen(mark, blind)
