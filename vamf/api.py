"""Train, search, sample and compare from Python, with the same files and MLflow runs as the jobs.

All of it can be reached from ``vamf`` itself: ``vamf.train(vamf.PRESETS["digits"], steps=100)``.
"""

import importlib
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from vamf import commands, tracking, user_modules
from vamf.cluster.ray import connect
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import search_runner, study_database
from vamf.cluster.search.analysis import comparison
from vamf.cluster.search.analysis.comparison import Comparison
from vamf.cluster.search.analysis.results import Results, gather
from vamf.cluster.search.analysis.results import table as results_table
from vamf.cluster.search.budget import Budget
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.saved_search import saved
from vamf.cluster.search.space import Space
from vamf.cluster.train import tracked_run
from vamf.cluster.train.progress import progress_bar
from vamf.experiment import Experiment
from vamf.inference.load import Trained
from vamf.inference.load import load as load_trained
from vamf.inference.sampling import generator_of, in_parts
from vamf.presets import preset as preset_of
from vamf.training.advice import advise
from vamf.training.evaluation import Metrics
from vamf.training.pictures import picture, pictured
from vamf.training.warm_start.start import resolved

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Model:
    """A trained network: the moving average of a checkpoint, on a device."""

    trained: Trained
    """The network with its experiment, path and step."""

    @property
    def experiment(self) -> Experiment:
        """The experiment that it was trained by."""
        return self.trained.experiment

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        label: int | None = None,
        scale: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Tensor:
        """``count`` samples, (count, *shape) float32 on the CPU; images lie in about [-1, 1].

        Sample i is a function of ``seed`` and i. ``steps`` of the sampler, the guidance ``scale``
        and the ``interval`` of guided times are by default the experiment's; ``label`` is the class
        of all samples. Raises ValueError for a count or steps below 1, and for what the network
        does not know.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1; got {count}")
        made = generator_of(
            self.trained, steps=steps, seed=seed, label=label, scale=scale, interval=interval
        )
        return torch.cat(list(in_parts(made, count)))

    def grid(self, count: int | None = None, **chosen: Any) -> Image.Image:
        """A picture of samples, which a notebook shows; ``chosen`` is as for ``sample``."""
        number = len(pictured(self.trained.shape)) if count is None else count
        file = BytesIO()
        picture(self.sample(number, **chosen), file)
        return Image.open(file)


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended."""

    directory: Path
    """Its folder."""
    metrics: Metrics
    """What its last evaluation measured, by name, each with its error."""

    def load(self, device: str | torch.device | None = None) -> Model:
        """The best checkpoint of the run."""
        return load(self.directory, device)


@dataclass(frozen=True)
class Search:
    """A finished or interrupted search."""

    directory: Path
    """Its folder."""
    results: Results
    """Trials, Pareto front and hypervolume."""

    def to_pandas(self) -> "pandas.DataFrame":
        """A row a trial: its settings, each metric and its error, whether it is on the front."""
        import pandas

        return pandas.DataFrame([self._row(trial) for trial in self.results.trials])

    def _row(self, trial: Any) -> dict[str, Any]:
        measured: dict[str, float] = {}
        for name, (value, error) in trial.metrics.items():
            measured |= {name: value, f"{name} ±": error}
        front = trial.number in self.results.front
        ended = {"seconds": trial.seconds, "stopped": trial.stopped, "error": trial.error}
        return {"trial": trial.number, **trial.settings, **measured, "front": front, **ended}

    def __str__(self) -> str:
        """The table that ``jobs.tune`` prints."""
        return results_table(self.results)


def train(
    experiment: Experiment | str,
    *,
    directory: str | Path | None = None,
    workers: int = 0,
    scaling: Scaling | None = None,
    tracking_uri: str | None = None,
    **settings: Any,
) -> TrainedRun:
    """Trains an experiment, or a preset by its name, and returns its folder and metrics.

    ``directory`` is a new folder, by default ``runs/PRESET-TIME``. ``workers`` Ray Train workers
    share each batch; 0 trains in this process; ``scaling`` says more. ``settings`` change fields of
    the experiment; ``experiment.override`` changes nested ones. Raises ValueError for a wrong
    setting, for missing data and for a folder that exists, RunFailed and NonFiniteLoss if the run
    fails.
    """
    name = experiment if isinstance(experiment, str) else "experiment"
    chosen = _experiment(experiment).override(settings).located()
    scaling = scaling or Scaling(workers=workers)
    scaling.check(chosen)
    folder, uri = _new(directory, name, tracking_uri)
    start = replace(tracked_run.new(folder, uri, name), numbered=directory is None)
    chosen.prepare()
    chosen = resolved(chosen)
    scaling = connect.prepare(scaling, folder.parent, uri)
    start = tracked_run.claimed(start)
    advise(chosen)
    return _launch(chosen, start, scaling)


def resume(directory: str | Path, *, tracking_uri: str | None = None) -> TrainedRun:
    """Continues a run from its latest checkpoint, on as many workers as before.

    Raises as ``train``, and ValueError if there is no such run, or if it still runs.
    """
    folder = Path(directory).resolve()
    uri = tracking.address(folder.parent, tracking_uri, tracking.address_of(folder))
    experiment, start = tracked_run.resumed(folder, uri)
    scaling = connect.prepare(tracked_run.scaling_of(folder), folder.parent, uri)
    return _launch(experiment, start, scaling)


def load(run: str | Path, device: str | torch.device | None = None) -> Model:
    """The network of a run's best checkpoint, of a checkpoint, or of an exported file.

    ``device`` is by default a GPU if there is one. Raises ValueError for what is not usable.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Model(load_trained(Path(run), torch.device(chosen)))


def tune(
    space: Space | str,
    *,
    experiment: Experiment | str | None = None,
    trials: int | None = None,
    seeds: int | Literal["auto"] = 1,
    hours: float | None = None,
    gpu_hours: float | None = None,
    halving: Halving | None = None,
    directory: str | Path | None = None,
    scaling: Scaling | None = None,
    tracking_uri: str | None = None,
    study: str | None = None,
) -> Search:
    """Searches a space, and returns its trials.

    ``space`` is the name of one of vamf's, ``path/file.py`` or a module's name; ``experiment`` is
    what it varies, by default the space's own preset. ``trials`` are by default 6, or as many as
    ``hours`` or ``gpu_hours`` allow; with ``seeds="auto"`` points whose verdict is open get more
    seeds; ``halving`` ends trials early; ``study`` is the address of a database for the study, by
    default a file in the folder. The other arguments are as for ``train``. Raises ValueError for a
    wrong choice, NothingFound if no trial succeeds.
    """
    name = space if isinstance(space, str) else getattr(space, "__name__", "space")
    found = _space(space) if isinstance(space, str) else space
    try:
        pickle.dumps(found.space)  # as Ray Tune saves it
    except (pickle.PicklingError, AttributeError, TypeError):
        raise ValueError(
            f"a space's function must be at the top level of a module; got {found.space}"
        ) from None
    base = experiment or found.PRESET
    preset = base if isinstance(base, str) else "experiment"
    budget = Budget(hours=hours, gpu_hours=gpu_hours)
    ends = halving or Halving()
    plan = search_runner.Plan(found, name, trials, seeds, ends, budget, preset)
    chosen = _experiment(base).located()
    search_runner.check(plan, chosen)
    folder, uri = _new(directory, "beta", tracking_uri)
    scaling = scaling or Scaling()
    scaling.check(chosen)
    sweep = search_runner.new(
        plan,
        chosen,
        folder,
        uri,
        scaling,
        numbered=directory is None,
        study=study_database.address(study),
    )
    ended, _ = search_runner.run(found, sweep)
    return Search(sweep.directory, ended)


def results(directory: str | Path) -> Search:
    """The trials of a search's folder, whether or not it has ended; ValueError if there is none."""
    folder = Path(directory).resolve()
    return Search(folder, gather(saved(folder)))


def compare(folders: Sequence[str | Path], *, best: bool = False) -> Comparison:
    """Compares a search, or runs and searches, that have ended, by their folders or addresses.

    The first one's configuration is the baseline; runs that differ in their seed are one row. Of a
    search all complete trials count, or only the ``best``. Raises ValueError for what has not ended
    or was not measured alike.
    """
    return comparison.compare(folders, best=best)


def _launch(experiment: Experiment, start: tracked_run.Launch, scaling: Scaling) -> TrainedRun:
    with progress_bar(start.directory, experiment.steps, experiment.batch):
        summary = tracked_run.launch(experiment, start, scaling)
    return TrainedRun(start.directory, summary.metrics)


def _experiment(choice: Experiment | str) -> Experiment:
    return preset_of(choice) if isinstance(choice, str) else choice


def _space(name: str) -> Any:
    """One of vamf's search spaces, which a wheel has inside of the package, or a user's own."""
    package = "vamf.tune_spaces" if commands.INSTALLED else "tune_spaces"
    if name.isidentifier() and find_spec(f"{package}.{name}"):
        return importlib.import_module(f"{package}.{name}")
    return user_modules.load_module(name)


def _new(directory: str | Path | None, name: str, uri: str | None) -> tuple[Path, str]:
    """A new run's folder and MLflow's address, which answers."""
    prefix = user_modules.short(name)
    folder = Path(directory or Path("runs") / f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = folder.expanduser().resolve()
    if directory is not None and folder.exists():
        raise ValueError(f"{folder} exists; choose another directory, or resume it")
    address = tracking.address(folder.parent, uri)
    tracking.check(address)
    return folder, address
