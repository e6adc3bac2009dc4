"""A search's Optuna study: which trials it holds, and what is to be tried next."""

import optuna

from vamf.cluster.halving import forget
from vamf.cluster.space import Space
from vamf.cluster.sweep import Sweep
from vamf.cluster.trials import TRIAL, Trial, judged, load_trials, trial_folder
from vamf.files import brief
from vamf.random import seed_of

FAILED = "failed.json"
"""The record of a failed trial whose point is tried anew."""

BETA_STAR = "beta_star/gradient/mse"
"""Where a trial's last landscape, if it measured one, has the batch gradient's error lowest."""


def open_study(sweep: Sweep) -> optuna.Study:
    """The sweep's study, which exists."""
    return optuna.load_study(study_name=sweep.name, storage=sweep.storage)


def require_study(storage: str) -> None:
    """Raises ValueError if the study's database is damaged, or of another version of Optuna's."""
    try:
        optuna.get_all_study_names(storage)
    except Exception as error:  # Optuna's, SQLAlchemy's, SQLite's
        told = brief(error).replace("$STORAGE_URL", storage)
        raise ValueError(f"the search's study, {storage}, must be readable; got {told}") from None


def sampler(space: Space, sweep: Sweep) -> optuna.samplers.BaseSampler:
    """The space's sampler; its seed is the experiment's, and another one once there are trials.

    With the same seed a resumed search would draw again what it drew at first.
    """
    seed = sweep.experiment.seed
    first, drawn = space.sampler(seed), _length(sweep)
    if drawn == 0:
        return first
    if isinstance(first, optuna.samplers.QMCSampler):
        # The seed stands for the sequence, and the study's length for the place in it; what is
        # reseeded are the draws that it makes apart from the sequence, before a trial has ended.
        first.reseed_rng()
        return first
    return space.sampler(seed_of("resumed", seed, drawn) % 2**32)  # NumPy takes 32 bits


def _length(sweep: Sweep) -> int:
    """How many trials the study holds, in whatever state; 0 if there is no study."""
    studies = optuna.get_all_study_summaries(sweep.storage)
    return next((study.n_trials for study in studies if study.study_name == sweep.name), 0)


def settle(sweep: Sweep) -> list[int]:
    """Settles the trials that have ended; returns the numbers of those that left no result.

    A trial that recorded its result is completed with it, one that was ended early is pruned, and
    one that failed is marked as failed.
    """
    if sweep.name not in optuna.get_all_study_names(sweep.storage):
        return []
    study = open_study(sweep)
    records = {trial.number: trial for trial in load_trials(sweep.directory)}
    running = [t.number for t in study.get_trials(states=(optuna.trial.TrialState.RUNNING,))]
    for number in running:
        if number in records:
            _tell(study, sweep, records[number])
    return [number for number in running if number not in records]


def settle_one(sweep: Sweep, number: int) -> None:
    """Settles a trial that has just ended, unless it is settled or left no result."""
    study, folder = open_study(sweep), trial_folder(sweep.directory, number)
    finished = study.get_trials(deepcopy=False)[number].state.is_finished()
    if not finished and (folder / TRIAL).exists():
        _tell(study, sweep, Trial.load(folder))


def _tell(study: optuna.Study, sweep: Sweep, record: Trial) -> None:
    record = judged(record, sweep.objectives)
    if record.complete:
        study.tell(record.number, [record.metrics[name].value for name in sweep.objectives])
        return
    states = optuna.trial.TrialState
    state = states.FAIL if record.stopped is None else states.PRUNED
    study.tell(record.number, state=state)


def put_back(sweep: Sweep) -> list[int]:
    """Settles the trials that have ended, and has the others gone on with, by the next who asks.

    These keep their numbers and their parameters. Returns their numbers.
    """
    left = settle(sweep)
    storage = optuna.storages.get_storage(sweep.storage)
    for number in left:
        study = storage.get_study_id_from_name(sweep.name)
        trial = storage.get_trial_id_from_study_id_trial_number(study, number)
        storage.set_trial_state_values(trial, optuna.trial.TrialState.WAITING)
    return left


def retry_failed(sweep: Sweep) -> list[int]:
    """Has the points of all failed trials tried anew, as new trials; returns the old numbers.

    Their records are renamed, and count no more.
    """
    trials = load_trials(sweep.directory)
    failed = [t.number for t in trials if judged(t, sweep.objectives).error is not None]
    for number in failed:
        study, folder = open_study(sweep), trial_folder(sweep.directory, number)
        study.enqueue_trial(study.get_trials(deepcopy=False)[number].params)
        forget(folder)
        (folder / TRIAL).rename(folder / FAILED)
    return failed


def follow_landscape(space: Space, sweep: Sweep, number: int) -> None:
    """Has the beta* that a first point's landscape found tried next, unless it has been.

    Not in a space that does not say what a constant beta is in it.
    """
    folder, constant = trial_folder(sweep.directory, number), getattr(space, "constant", None)
    if constant is None or number >= len(space.POINTS) or not (folder / TRIAL).exists():
        return
    star = Trial.load(folder).metrics.get(BETA_STAR)
    if star is None or not 0 <= star.value <= 1:  # NaN where nothing was measured
        return
    study, point = open_study(sweep), dict(constant(round(star.value, 2)))
    tried = [trial.system_attrs.get("fixed_params") for trial in study.get_trials(deepcopy=False)]
    if point not in tried:
        study.enqueue_trial(point)
