"""The number of a run's processes, and the resources of each."""

from dataclasses import dataclass
from typing import Literal

from vamf.experiment import Experiment
from vamf.experiment_settings import require_divisor

Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""How Ray spreads workers over nodes."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The number of a run's processes, and the resources of each."""

    workers: int = 0
    """Ray Train workers that share each batch; 0 trains in this process, without a cluster."""
    min_workers: int | None = None
    """Fewest workers to start or continue with while not all fit on the cluster; by default all.
    Ray changes their number as nodes join and leave, each time from the latest checkpoint."""
    resize_every: float = 60
    """Seconds between two checks for capacity for more workers, if there may be fewer."""
    cpus: float = 1
    """CPUs of a worker."""
    gpus: float | None = None
    """GPUs of a worker, by default 1 if the cluster has any; with a fraction, runs share a GPU."""
    placement: Placement = "PACK"
    """PACK: on few nodes; SPREAD: on many; STRICT: on one node, or each worker on another one."""
    wait: float = 0
    """Seconds to wait for nodes to start, before a run that does not fit is refused."""
    max_failures: int = 3
    """How often lost workers are replaced; the run continues from its latest checkpoint."""

    def __post_init__(self) -> None:
        self._check_elastic()
        if min(self.workers, self.gpus or 0, self.max_failures) < 0 or not self.cpus > 0:
            raise ValueError(
                "scaling needs workers >= 0, cpus > 0, gpus >= 0 and max_failures >= 0; "
                f"got {self.workers}, {self.cpus}, {self.gpus} and {self.max_failures}"
            )

    def _check_elastic(self) -> None:
        if self.wait < 0 or not self.resize_every > 0:
            raise ValueError(
                "scaling needs wait >= 0 and resize_every > 0; "
                f"got {self.wait} and {self.resize_every}"
            )
        if self.min_workers is None:
            return
        if not 1 <= self.min_workers <= self.workers:
            raise ValueError(
                f"min_workers must lie in 1, ..., workers; got {self.min_workers} of {self.workers}"
            )
        if self.placement.startswith("STRICT"):  # Ray's elastic policy ignores it
            raise ValueError(f"min_workers needs placement PACK or SPREAD; got {self.placement}")

    @property
    def fewest(self) -> int:
        """The fewest workers that the run starts with."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def need(self) -> dict[str, float]:
        """The resources of a worker, by Ray's names; GPUs only if their number is set."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def check(self, experiment: Experiment) -> None:
        """Raises ValueError unless the batch divides among the workers, however many there are."""
        parts = experiment.compute.accumulate
        for workers in range(max(self.fewest, 1), self.workers + 1):
            if experiment.batch % workers:
                raise ValueError(
                    f"batch must be divisible by the number of workers; "
                    f"got {experiment.batch} for {workers} workers"
                )
            if parts != "auto":
                require_divisor(parts, experiment.batch // workers, workers)
