"""Warns when no node has the capacity for a trial of a search."""

import time
from dataclasses import dataclass

from vamf.cluster.ray.capacity import runs_that_fit, shortage, sizes
from vamf.cluster.ray.scaling import Scaling

LOOK_S, WAIT_S = 5.0, 20.0
"""Seconds between two checks of the nodes, and between a shortage and its warning."""


@dataclass
class CapacityWatch:
    """Notices that no trial fits on the nodes any more, as some are lost, and that one fits again.

    Without it a search would wait for nodes without a message.
    """

    scaling: Scaling
    wait: float = WAIT_S
    _checked: float = 0.0
    _short_since: float | None = None
    _warned: bool = False

    def look(self) -> str | None:
        """The message to print now, if there is one."""
        now = time.monotonic()
        if now < self._checked + LOOK_S:
            return None
        self._checked, nodes = now, sizes()
        if runs_that_fit(self.scaling, nodes):
            warned, self._short_since, self._warned = self._warned, None, False
            return "there is room for a trial again" if warned else None
        self._short_since = now if self._short_since is None else self._short_since
        if self._warned or now < self._short_since + self.wait:
            return None
        self._warned = True
        return (
            f"no trial can be placed, nodes are missing: it needs {shortage(self.scaling, nodes)}"
        )
