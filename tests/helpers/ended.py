"""Folders of runs and searches that have ended, written without training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.tiny import TINY
from PIL import Image

from vamf.cluster.search.trials import Trial
from vamf.metrics.distances import Measurement
from vamf.run_layout import EXPERIMENT, SAMPLES, SUMMARY, SWEEP, seed_name, step_name, trial_name
from vamf.training.loop import Summary

VARIANCE, DISTANCE = "eval/loss_variance", "eval/fd_digits_cnn64_v1_n40_train"
ERROR = 0.25


def write_run(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    distance: float,
    variance: float = 0.5,
    seconds: float = 10.0,
    colour: str | None = "gray",
) -> Path:
    """A run of the tiny experiment with these settings, metrics and, if any, picture."""
    folder.mkdir(parents=True)
    experiment = TINY.override(settings or {})
    experiment.save(folder / EXPERIMENT)
    metrics = {
        experiment_distance(experiment): Measurement(distance, ERROR),
        VARIANCE: Measurement(variance, ERROR),
    }
    summary = Summary(step=experiment.steps, seconds=seconds, metrics=metrics)
    summary.save(folder / SUMMARY)
    if colour is not None:
        (folder / SAMPLES).mkdir()
        for step, shade in ((2, "black"), (experiment.steps, colour)):
            picture = Image.new("RGB", (60, 40), shade)
            picture.save(folder / SAMPLES / f"{step_name(step)}.png")
    return folder


def experiment_distance(experiment: Any) -> str:
    return f"eval/{experiment.evaluation.distance.key}"


def write_search(
    folder: Path, betas: Mapping[float, Sequence[float]], labels: Sequence[str] = ()
) -> Path:
    """A search over beta: the distances of each one's seeds."""
    for number, (beta, distances) in enumerate(betas.items()):
        place = folder / trial_name(number)
        for seed, distance in enumerate(distances):
            settings = {"beta.value": beta, "seed": seed}
            write_run(place / seed_name(seed), settings, distance=distance)
        seeds = [{DISTANCE: value, VARIANCE: 0.5} for value in distances]
        mean = Measurement(sum(distances) / len(distances), ERROR)
        metrics = {DISTANCE: mean, VARIANCE: Measurement(0.5, ERROR)}
        settings = {"beta.value": beta}
        label = labels[number] if labels else ""
        trial = Trial(number=number, settings=settings, label=label, metrics=metrics, seeds=seeds)
        trial.save(place)
    (folder / SWEEP).write_text(json.dumps({"objectives": [VARIANCE, DISTANCE]}))
    return folder
