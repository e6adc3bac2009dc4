"""Follows the trials of a running search: its progress bar, a line for each trial, its study."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vamf.cluster.ray.capacity_watch import CapacityWatch
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_copy import pull_trial, push
from vamf.cluster.search.search_status import SearchStatus
from vamf.cluster.search.space import Space
from vamf.cluster.search.storage_failure import StorageMonitor
from vamf.cluster.search.study import follow_landscape, record_result
from vamf.cluster.search.trial_end import describe, described, record_failure
from vamf.cluster.train.progress import SampleRate
from vamf.cluster.train.start_delay import WaitingTrials
from vamf.output import say


class SearchMonitor:
    """What is done when trials report, end and fail, in the process that runs the search.

    Its methods raise StorageUnusable if the search's storage is full or gone.
    """

    def __init__(
        self, space: Space, sweep: Sweep, bar: Any, added: Mapping[int, int] | None = None
    ) -> None:
        """``added`` is the number of new seeds of complete trials, by number."""
        self._space, self._sweep, self._bar, self._added = space, sweep, bar, added or {}
        self._done: dict[int, int] = {}
        self._goals: dict[int, int] = {}
        self._trainings = 0 if bar is None else (bar.total or 0) / sweep.experiment.steps
        self._status, self._rate = SearchStatus(sweep), SampleRate(sweep.experiment.batch)
        self._capacity, self._waiting = CapacityWatch(sweep.scaling), WaitingTrials(sweep.directory)
        self._storage = StorageMonitor(sweep.directory)

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """A trial reported its steps, or that the storage refused to be written."""
        self._storage.read_report(result)
        self._move(number, result.get("steps", result.get("step", 0)))

    def started(self, number: int, settings: Mapping[str, Any]) -> None:
        """A trial has started: the study must have it if this machine is lost."""
        own = self._sweep.experiment
        with suppress(ValueError):  # which the trial itself will report
            own = own.override(settings)
        self._goals[number] = self._seeds(number) * own.steps
        if self._bar.total is not None:
            self._bar.total = self._expected()
        with self._storage.watched():
            push(self._sweep)

    def completed(self, number: int) -> None:
        """A trial has ended by itself."""
        self._move(number, self._goals[number])
        with self._storage.watched():
            pull_trial(self._sweep, number)
        self.print_line(number)
        with self._storage.watched():
            record_result(self._sweep, number)
            follow_landscape(self._space, self._sweep, number)
            push(self._sweep)

    def failed(self, drawn: Mapping[str, Any], error: Exception | None) -> None:
        """A trial will not be tried again; ``error`` is None if its process died."""
        if self._storage.writable():
            with self._storage.watched():
                pull_trial(self._sweep, drawn["number"])
                record_failure(self._sweep, drawn, error)
                push(self._sweep)
            self.print_line(drawn["number"])

    def restarted(self, number: int, error: Exception | None) -> None:
        """A trial is tried again."""
        if self._storage.writable():
            why = "its process died" if error is None else described(error)
            say(f"trial {number}: {why}; it resumes from its checkpoint")

    def tick(self, running: int) -> None:
        """Some time has passed; ``running`` trials run now."""
        self._storage.require()
        for line in (self._capacity.look(), *self._waiting.look()):
            if line:
                say(line)
        speed = self._rate(int(self._bar.n), time.monotonic())
        status = self._status.text(running)
        self._bar.set_postfix_str(f"{speed}{', ' * bool(speed)}{status}", refresh=False)

    def print_line(self, number: int) -> None:
        """Prints how a trial ended."""
        try:
            say(describe(self._sweep, number))
            self._status.read()
        except (OSError, ValueError) as error:  # an error in printing must not end the search
            say(f"trial {number}: its record could not be read: {error}")

    def _seeds(self, number: int) -> int:
        return self._added.get(number, self._sweep.seeds)

    def _expected(self) -> int:
        """Steps of all trials; those that have not started may have as many as those that have."""
        known, seeds = sum(self._goals.values()), sum(map(self._seeds, self._goals))
        return round(known * max(self._trainings / seeds, 1))

    def _move(self, number: int, now: int) -> None:
        before = self._done.get(number, 0)
        self._bar.update(max(now - before, 0))
        self._done[number] = max(now, before)
