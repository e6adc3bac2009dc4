"""What the nodes of a cluster have room for: nothing must wait for ever, or without a word."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vamf.cluster.train import Scaling

Amounts = Mapping[str, float]
"""Resources by Ray's names: CPU, GPU."""

LOOK_S, WAIT_S = 5.0, 20.0
"""Seconds between looks at the nodes, and until it is said that they have too little room."""


@dataclass(frozen=True)
class Demand:
    """Processes that are placed together, each on one node."""

    count: int
    each: Amounts
    """What each of them takes."""

    @classmethod
    def of(cls, scaling: Scaling) -> "Demand":
        """The workers of a run; a run of 0 workers is one process."""
        return cls(max(scaling.workers, 1), {"CPU": scaling.cpus, "GPU": scaling.gpus or 0})

    def fits(self, nodes: Sequence[Amounts]) -> int:
        """How many such groups these nodes have room for at once."""
        return sum(self._on(node) for node in nodes) // self.count

    def _on(self, node: Amounts) -> int:
        needs = {name: amount for name, amount in self.each.items() if amount}
        return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in needs.items())

    def missing(self, nodes: Sequence[Amounts]) -> str:
        """What it asks for, and what there is, in words."""
        have = Counter(_words(node, self.each) for node in nodes)
        sizes = ", ".join(f"{count} x {size}" for size, count in have.most_common(4)) or "none"
        return f"{self.count} x {_words(self.each, self.each)}, each on one node; nodes: {sizes}"


def _words(amounts: Amounts, like: Amounts) -> str:
    names = [name for name, amount in like.items() if amount]
    return " and ".join(f"{amounts.get(name, 0):g} {name}" for name in names)


def alive() -> list[Amounts]:
    """What each node of the cluster has in all, whoever uses it."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def require_room(scaling: Scaling) -> None:
    """Raises ValueError unless the cluster's nodes could hold the run if they were free."""
    demand, nodes = Demand.of(scaling), alive()
    if not demand.fits(nodes):
        raise ValueError(f"the cluster must have room for a run; it needs {demand.missing(nodes)}")


@dataclass
class Watch:
    """Notices that nodes have gone, so that nothing can be placed any more, and that they are back.

    Without it a search would wait for them in silence.
    """

    demand: Demand
    wait: float = WAIT_S
    _looked: float = 0.0
    _lacking: float | None = field(default=None)
    _told: bool = False

    def look(self) -> str | None:
        """A line, once there is something to say."""
        now = time.monotonic()
        if now < self._looked + LOOK_S:
            return None
        self._looked, nodes = now, alive()
        if self.demand.fits(nodes):
            back, self._lacking, self._told = self._told, None, False
            return "there is room for a trial again" if back else None
        self._lacking = now if self._lacking is None else self._lacking
        if self._told or now < self._lacking + self.wait:
            return None
        self._told = True
        return f"no trial can be placed, nodes are missing: it needs {self.demand.missing(nodes)}"
