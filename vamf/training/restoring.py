"""Going on from a checkpoint, and saying what is unusual about it."""

from collections.abc import Callable
from pathlib import Path

from vamf.experiment import SCHEMA, Experiment
from vamf.training.checkpoint import Checkpoint, CheckpointFolder
from vamf.training.trainer import Trainer

Note = Callable[[str, str], None]
"""Takes the name and the text of something unusual in a run."""


def checkpoints(experiment: Experiment, directory: Path) -> CheckpointFolder:
    """The checkpoints of the run in ``directory``."""
    return CheckpointFolder(
        path=directory / "checkpoints",
        keep=experiment.checkpoint.keep,
        best_by=f"eval/{experiment.evaluation.distance.key}",
    )


def newest(folder: CheckpointFolder, experiment: Experiment) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, None in a new run, and what is wrong with later ones.

    Raises ValueError if it is of another experiment, or if there are some but none is intact.
    """
    found, wrong = folder.intact()
    if found is None and wrong:
        raise ValueError(f"no checkpoint is intact, delete them to begin anew: {'; '.join(wrong)}")
    if found is not None:
        found.require(experiment)
    return found, wrong


def restore(
    trainer: Trainer,
    folder: CheckpointFolder,
    note: Note,
    fetch: Callable[[Path], None] = lambda path: None,
) -> None:
    """Takes up the newest intact checkpoint, the same one on all workers.

    Rank 0 chooses, hides damaged ones, and notes them and a change of the workers; ``fetch`` brings
    the chosen one to where the others look for it.
    Raises ValueError if there is none to go on from, or it does not fit.
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


def _note(found: Checkpoint, wrong: list[str], now: str, note: Note) -> None:
    if wrong:
        note("checkpoint.damaged", f"{'; '.join(wrong)}; goes on from step {found.step}")
    before = found.made_on()
    if before not in (None, now):
        note(
            "workers.changed",
            f"{before} up to step {found.step}, {now} from there: no longer bit for bit",
        )
    experiment = found.experiment()
    drops = getattr(experiment.model, "dropout", 0) > 0
    if found.schema < SCHEMA and (drops or experiment.augment is not None):
        note(
            "code.changed",
            f"an earlier vamf trained up to step {found.step}, with other masks of dropout and "
            "another map of augmentations: no longer bit for bit",
        )


def _load(trainer: Trainer, checkpoint: Checkpoint) -> None:
    state = checkpoint.load_for(trainer.experiment, trainer.workers.device)
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, KeyError) as error:  # saved by other code
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint {checkpoint.path} does not fit this code: {reason}") from None
