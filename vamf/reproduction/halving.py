"""What ending trials early risks and saves, replayed on the recorded curves of whole searches."""

from collections.abc import Sequence
from pathlib import Path

from vamf import markdown, tracking
from vamf.cluster.search.analysis.halving_replay import Curves, risk
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.saved_search import saved
from vamf.cluster.search.trials import checked, load_trials, trial_folder
from vamf.run_layout import RUN, seed_name
from vamf.tracking import Run

CURVES = Path(__file__).with_name("curves")
"""The recorded curves: 30 trials of the space ``recipe`` on the digits and on MNIST."""


def recorded(search: Path, uri: str) -> Curves:
    """The curves of the first seed of a search's complete trials, from MLflow at ``uri``.

    Raises ValueError if there is no search, or none of its trials is complete.
    """
    sweep = saved(search, uri)
    trials = [t for t in load_trials(search) if checked(t, sweep.objectives).complete]
    if not trials:
        raise ValueError(f"no trial of {search} is complete")
    first, names, found = seed_name(sweep.experiment.seed), sweep.objectives, []
    for trial in trials:
        run = Run.load(trial_folder(search, trial.number) / first / RUN, uri)
        found.append([dict(tracking.history(uri, run.run_id, name)) for name in names])
    steps = sorted(set.intersection(*(set(curve) for curves in found for curve in curves)))
    return Curves(
        objectives=names,
        steps=tuple(steps),
        values=[[[curve[step] for curve in curves] for step in steps] for curves in found],
        baseline=next((i for i, trial in enumerate(trials) if trial.baseline), None),
        settings=[trial.settings for trial in trials],
    )


def rules(steps: Sequence[int]) -> list[Halving]:
    """The rules that are compared: first rungs at a few shares of the training, what they keep."""
    end = steps[-1]
    rungs = [[0.1], [0.2], [0.3], [0.5], [0.2, 0.5], [0.3, 0.6]]
    placed = [tuple(_nearest(steps, share * end) for share in shares) for shares in rungs]
    distinct = dict.fromkeys(rung for rung in placed if len(set(rung)) == len(rung))
    return [Halving(rungs=rung, keep=keep) for keep in (0.3, 0.5, 0.7) for rung in distinct]


def _nearest(steps: Sequence[int], place: float) -> int:
    return min(steps[:-1], key=lambda step: abs(step - place))


def row(curves: Curves, rule: Halving) -> list[str]:
    """What a rule would have lost and saved, as the cells of the table."""
    found = risk(curves, rule)
    return [
        f"{rule.keep:.0%}",
        ", ".join(map(str, rule.rungs)),
        *(f"{share:.0%}" for share in (found.saved, found.best_lost, found.front_lost)),
        f"{found.hypervolume:.3f}",
    ]


def table(curves: Curves) -> str:
    """What each rule would have lost and saved, in Markdown."""
    header = ["kept", "rungs", "steps saved", "best ended", "front ended", "hypervolume left"]
    return markdown.table(header, [row(curves, rule) for rule in rules(curves.steps)])
