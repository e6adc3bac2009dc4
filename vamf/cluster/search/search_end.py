"""What the end of a search, or of one of its drivers, leaves to others or to a later attempt."""

from pathlib import Path

from vamf.cluster.search.analysis.results import Results
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_copy import pull_unfinished
from vamf.cluster.search.study import requeue_unfinished
from vamf.cluster.search.trial_end import BUDGET_ENDED, postponed
from vamf.cluster.search.trials import trial_folder
from vamf.cluster.train.tracked_run import close_abandoned
from vamf.errors import NothingFound, RunFailed
from vamf.output import say
from vamf.run_layout import RUN


def say_that_others_go_on(sweep: Sweep, left: list[int]) -> None:
    """Prints that a driver has ended before others, and which trials it could not end."""
    say(
        "nothing is left to start; others still work on the search, and the last writes its results"
    )
    if left:
        reasons = (postponed(trial_folder(sweep.directory, number)) for number in left)
        why = next(filter(None, reasons), "its process ended")
        say(f"{len(left)} trials have no result yet: {why}; others may start them again")


def require_results(
    sweep: Sweep, found: Results, before: set[int], left: list[int], table: Path
) -> None:
    """Raises RunFailed if trials have no result, NothingFound if all failed."""
    reasons = {number: postponed(trial_folder(sweep.directory, number)) for number in left}
    lost = [number for number, reason in reasons.items() if reason != BUDGET_ENDED]
    if lost:
        why = next((reason for number in lost if (reason := reasons[number])), "its process ended")
        raise RunFailed(
            f"{len(lost)} of {len(left) + len(found.trials)} trials have no result yet: {why}; "
            f"those that ended are in {table}; to resume: {sweep.resume_command}"
        )
    tried = [trial for trial in found.trials if trial.number not in before]
    if not found.complete or (tried and all(trial.error for trial in tried)):
        raise NothingFound(
            f"no trial of {sweep.name}{' that was tried now' * bool(before)} succeeded; see {table}"
        )


def requeue(sweep: Sweep, others: set[str]) -> list[int]:
    """Requeues trials without a result, and ends their MLflow runs until they are resumed.

    Leaves the trials of the drivers ``others`` to them.
    """
    pull_unfinished(sweep)
    left = requeue_unfinished(sweep, others)
    for number in left:
        for run_file in trial_folder(sweep.directory, number).glob(f"*/{RUN}"):
            close_abandoned(run_file, sweep.parent.uri)
    return left
