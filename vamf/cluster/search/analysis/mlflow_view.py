"""Shows a search in MLflow's UI: its trials compared, and a description with verdict and table."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from vamf import commands, presets
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.analysis.configurations import leaf, value_text
from vamf.cluster.search.analysis.results import Results, table
from vamf.cluster.search.budget import Budget
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.trials import load_trials, trial_folder
from vamf.compat import mlflow as compat
from vamf.compat import mlflow_view as view
from vamf.run_layout import BEST_SAMPLES, FRONT, LANDSCAPE, RUN, SAMPLES, SLICES, TABLE
from vamf.serialization import KIND
from vamf.tracking import Run, Tracker, view_path

NOTE_LENGTH = 7500
"""The longest description, in characters; MLflow takes 8,000."""

AXES = 6
"""The most varied settings that are drawn."""

CURVES = ("eval", "loss", "schedule", "time")
"""The groups of metrics that every run has."""

PROBED = ("probe", "beta_star", "beta_star/gradient", "beta_star/loss", "beta_star/conditional")
"""Those of landscapes."""

PICTURES = "Samples and landscape"


def show(sweep: Sweep) -> None:
    """Saves the view that compares the trials: parallel coordinates, scatters, samples, curves."""
    Tracker(sweep.parent).view(sweep.name, state(sweep))


def state(sweep: Sweep) -> dict[str, Any]:
    """The view's state, for what the trials so far have varied."""
    tried = [trial.settings for trial in load_trials(sweep.directory)]
    varied = axes(tried or [dict(sweep.baseline or {})])
    names = sweep.objectives
    columns = [*(("METRIC", name) for name in reversed(names)), *(("PARAM", n) for n in varied)]
    return view.state(
        parent=sweep.parent.run_id,
        order_by=names[-1],
        columns=columns,
        sections={
            "Comparison": _comparison(varied, names),
            "Training": [
                view.curves("Training loss", "loss/train"),
                *(view.curves(_short(name), name) for name in reversed(names)),
                view.curves("Norm of the gradient", "grad/norm"),
            ],
            PICTURES: _pictures(sweep),
        },
        heights={PICTURES: _height(sweep)},
        closed=CURVES if sweep.experiment.probe is None else CURVES + PROBED,
    )


def axes(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings to draw: those that all trials have, and that are not the same in all.

    MLflow leaves out a run that lacks one of the parameters.
    """
    common = [name for name in settings[0] if all(name in other for other in settings)]
    moving = [name for name in common if any(s[name] != settings[0][name] for s in settings)]
    single = [name for name in common if not name.endswith(f".{KIND}")]
    return (moving or single)[:AXES]


def _comparison(varied: Sequence[str], names: Sequence[str]) -> list[view.Card]:
    first, last = names[0], names[-1]
    together = f"{', '.join(leaf(n) for n in varied)} against {' and '.join(map(_short, names))}"
    over = [
        view.scatter(f"{_short(name)} over {leaf(setting)}", ("PARAM", setting), ("METRIC", name))
        for setting in varied[:2]
        for name in reversed(names)
    ]
    pareto = f"{_short(last)} against {_short(first)}: the Pareto plot"
    return [
        view.parallel(together, varied, names),
        view.scatter(pareto, ("METRIC", first), ("METRIC", last)),
        *over,
    ]


def _pictures(sweep: Sweep) -> list[view.Card]:
    experiment, steps = sweep.experiment, sweep.experiment.steps
    shown = [view.pictures("Samples of one step", SAMPLES, steps)]
    if experiment.probe is not None and experiment.probe.every <= steps:
        last = steps - steps % experiment.probe.every
        shown.append(view.pictures("Landscape of beta", LANDSCAPE, last))
    return shown


def _height(sweep: Sweep) -> int:
    """The height of a chart in which all pictures can be seen, three side by side, in pixels."""
    expected = view.PICTURED if sweep.trials is None else sweep.trials * sweep.seeds
    runs = min(expected, view.PICTURED)
    return 110 + 305 * math.ceil(runs / 3)


def describe(sweep: Sweep, results: Results, verdict: Sequence[str]) -> None:
    """Writes the description of the search's run."""
    Tracker(sweep.parent).tags({compat.NOTE: note(sweep, results, verdict)})


def note(sweep: Sweep, results: Results, verdict: Sequence[str]) -> str:
    """The description: link, verdict, table, plots, and the command that repeats the search."""
    before = [
        f"**[Compare the trials]({view_path(sweep.parent)})**: parallel coordinates, scatters, "
        "curves, samples, landscapes",
        "",
        *(f"- {_item(line)}" for line in verdict),
        "",
    ]
    after = ["", *(_plot(sweep.parent, name) for name in _plots(results))]
    if again := repeat_command(sweep):
        after += ["", "Again:", "", f"    {again}"]
    room = NOTE_LENGTH - len("\n".join([*before, *after]))
    return "\n".join([*before, *_rows(sweep, results, room), *after])


def _item(line: str) -> str:
    """A line of the verdict as an item of a list, where a star would be another list."""
    return re.sub(" {2,}", ": ", re.sub(r"^\*", "star:", line))


def _plots(results: Results) -> list[str]:
    cuts = [] if results.slices is None else [SLICES]
    return [FRONT, *cuts] if results.best is None else [FRONT, *cuts, BEST_SAMPLES]


def _plot(run: Run, name: str) -> str:
    """A picture, cut by MLflow if it is wide, that links to the whole of it."""
    page = view.artifact_path(run.experiment_id, run.run_id, name)
    return f"[![{name}](get-artifact?path={name}&run_uuid={run.run_id})]({page})"


def _rows(sweep: Sweep, results: Results, room: int) -> list[str]:
    """The rows of the table that have room, with the trials linked to their runs."""
    links = {trial.number: _link(sweep, trial.number) for trial in results.trials}
    lines, rows = table(results).splitlines(), list[str]()
    for index, line in enumerate(lines):
        cells = [re.sub(" +", " ", cell) for cell in line.split("|")]
        if index > 1 and (number := cells[2].strip()).isdigit() and links.get(int(number)):
            cells[2] = f" [{number}]({links[int(number)]}) "
        row = "|".join(cells)
        room -= len(row) + 1
        if room < 0:
            return [*rows, "", f"{len(lines) - index} more trials: {TABLE}"]
        rows.append(row)
    return rows


def _link(sweep: Sweep, trial: int) -> str | None:
    """The page of the run of a trial's first seed."""
    files = sorted(trial_folder(sweep.directory, trial).glob(f"*/{RUN}"))
    if not files:
        return None
    return view.run_path(sweep.parent.experiment_id, Run.load(files[0], "").run_id)


def repeat_command(sweep: Sweep) -> str | None:
    """The command that starts the same search anew; None for a preset that is not known here.

    It leaves out where the search is kept: name, storage, study and tracking.
    """
    try:
        changes = sweep.experiment.differences(presets.preset(sweep.preset))
    except (ValueError, ImportError):
        return None
    seeds = "auto" if sweep.front_seeds == "auto" else sweep.seeds
    sizes = [*_option("--trials", sweep.trials), "--seeds", seeds]
    budget = _options("--", sweep.budget, Budget())
    halving = _options("--halving.", sweep.halving, Halving())
    gpus = sweep.scaling.gpus
    usual = Scaling(gpus=gpus if gpus in (0.0, 1.0) else None)  # what the cluster has by default
    scaling = _options("--scaling.", sweep.scaling, usual)
    own = sweep.experiment.flatten()
    values = (f"{n}={value_text(own[n], rounded=False)}" for n in changes if n in own)
    settings = ["--set", *map(shlex.quote, values)] if changes else []
    given = [*sizes, *budget, *halving, *scaling, *settings]
    return commands.shown("tune", sweep.space, sweep.preset, *given)


Chosen = TypeVar("Chosen", Budget, Halving, Scaling)


def _options(prefix: str, chosen: Chosen, default: Chosen) -> list[object]:
    """The words of the fields that differ from the default."""
    words: list[object] = []
    for field in fields(chosen):
        value = getattr(chosen, field.name)
        if value != getattr(default, field.name):
            words += _option(prefix + field.name.replace("_", "-"), value)
    return words


def _option(name: str, value: object) -> list[object]:
    """The words of an option; none of one that is not given."""
    if value is None:
        return []
    return [name, *(value if isinstance(value, tuple) else (value,))]


def _short(name: str) -> str:
    return name.removeprefix("eval/")
