"""Resumes training from a checkpoint, and records notes on anything unusual about it."""

from collections.abc import Callable
from pathlib import Path

from vamf.experiment import Experiment
from vamf.run_layout import CHECKPOINTS
from vamf.training.checkpoints.checkpoint import Checkpoint, CheckpointFolder
from vamf.training.step.trainer import Trainer

NoteRecorder = Callable[[str, str], None]
"""A function that records the name and the text of something unusual in a run."""


def checkpoints(experiment: Experiment, directory: Path) -> CheckpointFolder:
    """The checkpoints of the run in ``directory``."""
    return CheckpointFolder(
        path=directory / CHECKPOINTS,
        keep=experiment.checkpoint.keep,
        best_by=f"eval/{experiment.evaluation.distance.key}",
    )


def newest(folder: CheckpointFolder, experiment: Experiment) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to resume from (None in a new run), and the errors of newer, damaged ones.

    Raises ValueError if it is of another experiment, or if checkpoints exist but none is intact.
    """
    found, wrong = folder.intact()
    if found is None and wrong:
        raise ValueError(f"no checkpoint is intact; delete them to restart: {'; '.join(wrong)}")
    if found is not None:
        found.require(experiment)
    return found, wrong


def restore(
    trainer: Trainer,
    folder: CheckpointFolder,
    note: NoteRecorder,
    fetch: Callable[[Path], None] = lambda path: None,
) -> bool:
    """Loads the newest intact checkpoint, the same one on all workers; False if there is none.

    Rank 0 chooses it, hides damaged ones, and records notes on them and on a change of workers.
    ``fetch`` makes the chosen checkpoint available to the other ranks. Raises ValueError if no
    checkpoint is intact, or if it does not fit the experiment or the code.
    """
    workers, step = trainer.workers, ""
    if workers.rank == 0:
        found, wrong = newest(folder, trainer.experiment)
        folder.tidy(after=found.step if found else 0)
        if found is not None:
            step = str(found.step)
            _note(found, wrong, workers.described(), note)
    if step := workers.gather(step)[0]:
        checkpoint = folder.at(int(step))
        fetch(checkpoint.path)
        _load(trainer, checkpoint)
    return bool(step)


def _note(found: Checkpoint, wrong: list[str], now: str, note: NoteRecorder) -> None:
    if wrong:
        note("checkpoint.damaged", f"{'; '.join(wrong)}; resumes from step {found.step}")
    before = found.made_on()
    if before not in (None, now):
        note(
            "workers.changed",
            f"{before} up to step {found.step}, {now} from there: no longer bit for bit",
        )
    experiment = found.experiment()
    drops = getattr(experiment.model, "dropout", 0) > 0
    if found.schema < 2 and (drops or experiment.augment is not None):
        note(
            "code.changed",
            f"an earlier vamf trained up to step {found.step}, with other masks of dropout and "
            "another embedding of augmentations: no longer bit for bit",
        )


def _load(trainer: Trainer, checkpoint: Checkpoint) -> None:
    state = checkpoint.load_for(trainer.experiment, trainer.workers.device)
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, KeyError) as error:  # saved by other code
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint {checkpoint.path} does not fit this code: {reason}") from None
