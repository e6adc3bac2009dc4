"""A search's Optuna study: which trials it holds, and what is to be tried next."""

import optuna

from vamf.cluster.space import Space
from vamf.cluster.sweep import Sweep
from vamf.cluster.trials import TRIAL, Trial, judged, load_trials, trial_folder
from vamf.files import brief
from vamf.random import seed_of

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


def settle(sweep: Sweep) -> list[optuna.trial.FrozenTrial]:
    """Settles the trials on which nobody works any more; returns those that left no result.

    A trial that recorded its result is completed with it, one that was ended early is pruned, and
    the others are marked as failed.
    """
    if sweep.name not in optuna.get_all_study_names(sweep.storage):
        return []
    study = open_study(sweep)
    records = {trial.number: trial for trial in load_trials(sweep.directory)}
    running = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    for trial in running:
        _tell(study, sweep, trial.number, records.get(trial.number))
    return [trial for trial in running if trial.number not in records]


def settle_one(sweep: Sweep, number: int) -> None:
    """Settles a trial that has just ended, unless it is settled."""
    study, folder = open_study(sweep), trial_folder(sweep.directory, number)
    if not study.get_trials(deepcopy=False)[number].state.is_finished():
        _tell(study, sweep, number, Trial.load(folder) if (folder / TRIAL).exists() else None)


def _tell(study: optuna.Study, sweep: Sweep, number: int, record: Trial | None) -> None:
    record = None if record is None else judged(record, sweep.objectives)
    if record is not None and record.complete:
        study.tell(number, [record.metrics[name].value for name in sweep.objectives])
        return
    pruned = record is not None and record.stopped is not None
    states = optuna.trial.TrialState
    study.tell(number, state=states.PRUNED if pruned else states.FAIL)


def abandon(sweep: Sweep) -> list[int]:
    """Settles what a dead search left in flight, to be tried again; returns the lost numbers."""
    lost = settle(sweep)
    for trial in lost:
        open_study(sweep).enqueue_trial(trial.params)
    return [trial.number for trial in lost]


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
