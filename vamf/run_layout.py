"""The names of all files and folders in the folder of a run, and of a search."""

# A run's folder

EXPERIMENT = "experiment.json"
"""The experiment; also in each checkpoint."""

RUN = "run.json"
"""The MLflow run; also in each event queue."""

SCALING = "scaling.json"
"""The scaling of the latest attempt."""

SUMMARY = "summary.json"
"""The summary of the run: its last step, time and metrics."""

SPENT = "spent.json"
"""The seconds and GPU seconds of all attempts."""

EVALUATIONS = "evaluations.jsonl"
"""The metrics of each evaluation, with its step and the seconds of all steps before it."""

ERROR_DETAILS = "error.txt"
"""The traceback of the workers that ended the run."""

PROGRESS = "progress"
"""The last reported step, and remarks for the progress bar."""

NOTES = "notes"
"""Notes on anything unusual in the run, one on each line."""

SAVE_REQUEST = "ending"
"""While this file exists, rank 0 is asked to save the training's state."""

WAITING = "waiting"
"""Why the run has not started yet."""

LOCK = ".lock"
"""The file that the process of a run or a search locks; also the suffix of other lock files."""

SAMPLES = "samples"
"""The folder of the pictures of samples."""

LANDSCAPE = "landscape"
"""The folder of the measured beta landscapes."""

LAST_LANDSCAPE = "landscape.json"
"""The estimates of the last landscape, with its step, for when the run is resumed."""

RAY = "ray"
"""The folder of Ray's own files."""

# Checkpoints

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints."""

UPLOADING = "uploading"
"""The folder of hard links to the checkpoint that is being uploaded."""

STEPS = "step_*"
"""Pattern of the names that ``step_name`` returns."""

STATE = "state.pt"
"""The tensors of a checkpoint."""

META = "meta.json"
"""The step and the metrics of a checkpoint."""

MANIFEST = "manifest.json"
"""The checksums of a checkpoint's other files."""

# Event queues

SPOOL = "spool"
"""The folder that holds an event queue for each MLflow run."""

EVENTS = "events.jsonl"
"""The events of a queue."""

EVENTS_LOCK = "events.lock"
"""The lock file of the events."""

SENT = "sent"
"""The number of acknowledged bytes of the events."""

REJECTED = "rejected.jsonl"
"""The events that MLflow refused."""

QUEUED_FILES = "files"
"""The folder of the copies of files that wait to be sent."""

SENDER = "sender"
"""The name of the process that sent last."""

SENDER_LOCK = "sender.lock"
"""The lock file of the sending process."""

# A search's folder

SWEEP = "sweep.json"
"""The search."""

DRIVERS = "drivers"
"""The folder with a lock file for each process that works on the search."""

TURN = ".turn.lock"
"""The file that these processes lock to start or give up a trial, to come and to go."""

STUDY = "study.db"
"""The database of the Optuna study."""

TRIALS = "t*"
"""Pattern of the names that ``trial_name`` returns."""

TRIAL = "trial.json"
"""The record of a trial, in the trial's folder."""

FAILED_TRIAL = "failed.json"
"""The record of a failed trial whose parameters are tried again."""

POSTPONED = "postponed"
"""Why a trial has no result."""

RUNGS = "rung_*.json"
"""Pattern of the names that ``rung_name`` returns."""

TABLE = "trials.md"
"""The table of the trials."""

FRONT = "pareto.png"
"""The picture of the Pareto front."""

SLICES = "slices.png"
"""The picture of the objectives along each parameter."""

BEST_SAMPLES = "best_samples.png"
"""A copy of the samples of the best trial."""

WRITE_TEST = ".usable"
"""A file that is written to test whether the folder is writable."""

# The storage, which holds the folders of runs and searches

DATABASE = "mlflow.db"
"""MLflow's database, unless another tracking server is used."""

ARTIFACTS = "mlartifacts"
"""The folder beside MLflow's database with the files of its runs."""


def step_name(step: int) -> str:
    """The name of a step's checkpoint; also the name of its picture without the suffix."""
    return f"step_{step:08d}"


def trial_name(number: int) -> str:
    """The name of a trial's folder in the search's folder."""
    return f"t{number:03d}"


def trial_number(name: str) -> int:
    """The trial number of a folder name."""
    return int(name.removeprefix("t"))


def seed_name(seed: int) -> str:
    """The name of the folder of a seed's run, in a trial's folder."""
    return f"seed_{seed}"


def rung_name(step: int) -> str:
    """The name of a trial's measurement at a rung, in the trial's folder."""
    return f"rung_{step:08d}.json"
