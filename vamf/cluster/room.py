"""Whether a search still has room: nothing must wait for ever without a word."""

import time
from dataclasses import dataclass

from vamf.cluster.nodes import groups, missing, sizes
from vamf.cluster.scaling import Scaling

LOOK_S, WAIT_S = 5.0, 20.0
"""Seconds between looks at the nodes, and until it is said that they have too little room."""


@dataclass
class Watch:
    """Notices that nodes have gone, so that no trial has room any more, and that they are back.

    Without it a search would wait for them in silence.
    """

    scaling: Scaling
    wait: float = WAIT_S
    _looked: float = 0.0
    _lacking: float | None = None
    _told: bool = False

    def look(self) -> str | None:
        """A line, once there is something to say."""
        now = time.monotonic()
        if now < self._looked + LOOK_S:
            return None
        self._looked, nodes = now, sizes()
        if groups(self.scaling, nodes):
            back, self._lacking, self._told = self._told, None, False
            return "there is room for a trial again" if back else None
        self._lacking = now if self._lacking is None else self._lacking
        if self._told or now < self._lacking + self.wait:
            return None
        self._told = True
        lacking = missing(self.scaling, nodes)
        return f"no trial can be placed, nodes are missing: it needs {lacking}"
