"""Asks rank 0 of a run to save its state before it is ended, by a file in the run's folder."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from vamf.files import write_whole
from vamf.run_layout import SAVE_REQUEST

SAVE_S = 10.0
"""Seconds that a driver which received a signal waits for the save."""

LOOK_S = 0.2
"""Seconds between two checks for the file."""


@dataclass
class SaveRequest:
    """Made by the driver, and cleared by rank 0 once its state is on the disk."""

    directory: Path
    """The run's folder, which both processes see."""
    _checked: float = field(default=0.0, repr=False)

    def make(self) -> None:
        """Asks for the state to be saved."""
        write_whole(self._file, "")

    def clear(self) -> None:
        """Withdraws the request; by rank 0: confirms that the state is saved."""
        self._file.unlink(missing_ok=True)

    def is_cleared(self) -> bool:
        """Whether there is no request."""
        return not self._file.exists()

    def is_made(self) -> bool:
        """Whether there is a request; checks the file a few times a second at most."""
        now = time.monotonic()
        if now < self._checked + LOOK_S:
            return False
        self._checked = now
        return not self.is_cleared()

    @property
    def _file(self) -> Path:
        return self.directory / SAVE_REQUEST
