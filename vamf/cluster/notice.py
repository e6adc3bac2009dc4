"""The notice that a run's workers are about to be ended, through a file in the run's folder."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from vamf.files import write_whole

FILE = "ending"
"""The file in a run's folder that asks rank 0 to save its state."""

SAVE_S = 10.0
"""Seconds for which a driver that is asked to end waits for that."""

LOOK_S = 0.2
"""Seconds between two looks for the file."""


@dataclass
class Notice:
    """Given by the driver and taken by rank 0, once its state is on the disk."""

    directory: Path
    """The run's folder, which both see."""
    _looked: float = field(default=0.0, repr=False)

    def give(self) -> None:
        """Asks for the state."""
        write_whole(self._file, "")

    def take(self) -> None:
        """Withdraws the notice, or says that the state was saved."""
        self._file.unlink(missing_ok=True)

    def taken(self) -> bool:
        """Whether nothing is asked for."""
        return not self._file.exists()

    def given(self) -> bool:
        """Whether the state is asked for; it looks a few times a second at most."""
        now = time.monotonic()
        if now < self._looked + LOOK_S:
            return False
        self._looked = now
        return not self.taken()

    @property
    def _file(self) -> Path:
        return self.directory / FILE
