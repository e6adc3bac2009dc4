"""What is logged of training beside its losses and evaluations."""

import torch

from vamf.data.streaming import StreamedSet
from vamf.diagnostics.variance import TIMES
from vamf.training.elapsed_time import Clock
from vamf.training.step.memory import GIB
from vamf.training.step.trainer import Trainer


def logged_values(trainer: Trainer, clock: Clock) -> dict[str, float]:
    """Named values of the last step: gradient, schedules, time and memory."""
    spent = clock.spent()
    on_gpus = {"time/gpu_seconds": spent.gpu_seconds} if spent.gpu_seconds else {}
    return {
        "grad/norm": trainer.gradient_norm(),
        **_beta(trainer),
        "schedule/lr": trainer.optimiser.param_groups[0]["lr"],
        **({"schedule/stage": trainer.stage} if trainer.experiment.stages else {}),
        "time/seconds": spent.seconds,
        **on_gpus,
        "time/workers": trainer.workers.world,
        **_speed(trainer, clock),
        **_waiting(trainer),
    }


def _speed(trainer: Trainer, clock: Clock) -> dict[str, float]:
    """Samples a second since the last log or evaluation; the run's largest GPU memory so far."""
    batch, gib = trainer.experiment.batch, peak_gib(trainer)
    speed = {"time/images_per_second": batch / clock.seconds_of_step(trainer.step)}
    return speed if gib is None else speed | {"memory/peak_gib": gib}


def peak_gib(trainer: Trainer) -> float | None:
    """The run's largest GPU memory so far, in GiB; None on the CPU."""
    device = trainer.workers.device
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def _waiting(trainer: Trainer) -> dict[str, float]:
    """The share of the time since the last log that was spent waiting for data from disk."""
    data = trainer.dataset
    return {"time/waiting": data.waiting_share()} if isinstance(data, StreamedSet) else {}


def _beta(trainer: Trainer) -> dict[str, float]:
    """beta of the last step; if it depends on t, also at the times of the loss variance."""
    t = torch.tensor(TIMES, device=trainer.workers.device)
    beta = trainer.objective.beta(trainer.step - 1, t)
    if not isinstance(beta, torch.Tensor):
        return {"schedule/beta": beta}
    at = {f"schedule/beta_t{time}": b for time, b in zip(TIMES, beta.tolist(), strict=True)}
    return {"schedule/beta": float(beta.mean())} | at
