"""The format of a shared view of MLflow's UI: which runs it lists, and which charts it shows.

Unstable, all of it: MLflow's UI writes such views for itself, in a tag of the experiment, when a
user shares one. The format is read from its JavaScript. Without it the UI opens on an overview,
and each chart is made by hand.
"""

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

KNOWN = ("3.17",)
"""The versions of MLflow whose format this is."""

TAG = "mlflow.sharedViewState."
"""The prefix of the tag; the view's key follows."""

LENGTH = 5000
"""The longest tag of an experiment, in characters."""

COMPRESSED = "deflate;"
"""The prefix of a compressed state."""

TRAINING = "workflowType=machine_learning"
"""The part of an address that opens pages for training rather than for language models."""

PICTURED = 10
"""How many runs' pictures MLflow shows in a chart."""

Card = dict[str, Any]
"""A chart."""

Axis = tuple[str, str]
"""``PARAM`` or ``METRIC``, and the name."""


def known(version: str) -> bool:
    """Whether this is the format of a version of MLflow, such as ``3.17.2``."""
    match = re.match(r"\d+\.\d+", version)
    return match is not None and match[0] in KNOWN


def encoded(name: str, state: Mapping[str, Any], time_ms: int) -> str:
    """The value of a view's tag."""
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    times = {"createdAt": time_ms, "updatedAt": time_ms}
    return json.dumps({"name": name, **times, "state": COMPRESSED + packed})


def decoded(tag: str) -> tuple[str, dict[str, Any]]:
    """The inverse of ``encoded``: a view's name and state."""
    view = json.loads(tag)
    packed = base64.b64decode(view["state"].removeprefix(COMPRESSED))
    return view["name"], json.loads(zlib.decompress(packed))


def path(experiment_id: str, key: str) -> str:
    """The view's address, to be appended to the server's."""
    query = {"compareRunsMode": "CHART", "viewStateShareKey": key}
    return f"#/experiments/{experiment_id}/runs?{TRAINING}&{urlencode(query)}"


def run_path(experiment_id: str, run_id: str) -> str:
    """The address of a run's page, which every version of MLflow 3 has."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"


def artifact_path(experiment_id: str, run_id: str, file: str) -> str:
    """The address of a file on a run's page."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{file}?{TRAINING}"


def state(
    *,
    parent: str,
    order_by: str,
    columns: Sequence[Axis],
    sections: Mapping[str, Sequence[Card]],
    heights: Mapping[str, int],
    closed: Sequence[str],
) -> dict[str, Any]:
    """A view of a run's children, ordered by a metric, the smallest first.

    ``sections`` are shown in this order, open, with two charts side by side; those in ``heights``
    with one, of this many pixels. ``closed`` names those that MLflow fills itself, with a chart for
    each other metric whose name begins so.
    """
    names = [*sections, *closed]
    ids = {name: f"s{index}" for index, name in enumerate(names)}
    cards = [
        {**card, "uuid": f"{ids[name]}c{index}", "metricSectionId": ids[name]}
        for name, section in sections.items()
        for index, card in enumerate(section)
    ]
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": _column("METRIC", order_by),
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [_column(*axis) for axis in columns],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": cards,
        "compareRunSections": [
            {
                "uuid": ids[name],
                "name": name,
                "display": name in sections,
                "isReordered": True,
                "columns": 1 if name in heights else 2,
                "cardHeight": heights.get(name, 360),
            }
            for name in names
        ],
        "isAccordionReordered": True,
    }


def parallel(title: str, parameters: Sequence[str], metrics: Sequence[str]) -> Card:
    """Parallel coordinates."""
    chosen = {"selectedParams": [*parameters], "selectedMetrics": [*metrics]}
    return _card("PARALLEL", title) | chosen | {"showAllRuns": True}


def scatter(title: str, x: Axis, y: Axis) -> Card:
    """One parameter or metric against another."""
    return _card("SCATTER", title) | {"xaxis": _axis(*x), "yaxis": _axis(*y)}


def curves(title: str, metric: str) -> Card:
    """A metric over the steps, a curve for each run."""
    return _card("LINE", title) | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "yAxisKey": "metric",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def pictures(title: str, key: str, step: int) -> Card:
    """The logged images of a key at a step, without the parameters as captions.

    Of the first ten runs; MLflow shows them in the opposite order.
    """
    return _card("IMAGE", title) | {"imageKeys": [key], "step": step, "showRunParams": False}


def _card(kind: str, title: str) -> Card:
    shown = {"deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return {"type": kind, "displayName": title, **shown}


def _axis(kind: str, name: str) -> dict[str, str]:
    return {"key": name, "type": kind}


def _column(kind: str, name: str) -> str:
    groups = {"METRIC": "metrics", "PARAM": "params", "TAG": "tags"}
    return f"{groups[kind]}.`{name}`"
