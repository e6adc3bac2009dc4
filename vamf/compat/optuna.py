"""The private and unstable names of Optuna that vamf uses."""

from collections.abc import Iterable, Mapping
from typing import Any


def requeue(storage: Any, study: str, numbers: Iterable[int]) -> None:
    """Sets trials that no process runs any more to waiting: ``ask`` returns them first.

    ``storage`` is the database or its address, and ``study`` the study's name. Unstable: the
    methods of ``BaseStorage``, which Optuna does not mean for users. Without them a search that was
    interrupted starts its trials anew instead of resuming them.
    """
    import optuna

    database = optuna.storages.get_storage(storage)
    for number in numbers:
        known = database.get_study_id_from_name(study)
        trial = database.get_trial_id_from_study_id_trial_number(known, number)
        database.set_trial_state_values(trial, optuna.trial.TrialState.WAITING)


def describe(storage: Any, study: str, number: int, attributes: Mapping[str, Any]) -> None:
    """Sets user attributes of a trial that has not ended; Optuna's dashboard shows them.

    Unstable, as ``requeue``: a trial can describe itself only in the process that asked for it.
    Without it the dashboard does not lead to MLflow.
    """
    import optuna

    database = optuna.storages.get_storage(storage)
    known = database.get_study_id_from_name(study)
    trial = database.get_trial_id_from_study_id_trial_number(known, number)
    for name, value in attributes.items():
        database.set_trial_user_attr(trial, name, value)
