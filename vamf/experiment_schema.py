"""Schema versions of experiments as dictionaries, and the migration of older versions."""

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = 3
"""The version that is written."""


def migrated(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same experiment in the current version, without its version number.

    A dictionary without a number has version 1. Raises ValueError for an unknown version.
    """
    data = dict(data)
    schema = data.pop("schema", 1)
    if schema not in range(1, SCHEMA + 1):
        raise ValueError(
            f"an experiment's schema must be 1 to {SCHEMA}; got {schema!r}: update vamf"
        )
    for version in range(schema, SCHEMA):
        data = MIGRATIONS[version](data)
    return data


def _average_by_step(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 to 2: ``ema`` was the decay of one update, that is, of ``ema_every`` steps."""
    every = data.get("ema_every", 1)
    return data | {"ema": data["ema"] ** (1 / every)} if every > 1 and "ema" in data else data


def _one_objective(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 to 3: ``ddpm`` was a field beside ``loss``; ``loss.alpha`` selected alpha-Flow."""
    ddpm, loss = data.get("ddpm"), dict(data.get("loss", {}))
    alpha = loss.pop("alpha", None)
    data = {name: value for name, value in data.items() if name != "ddpm"}
    if ddpm is not None:
        return data | {"loss": ddpm | {"kind": "DDPM"}}
    if alpha is not None:
        return data | {"loss": loss | {"kind": "AlphaFlowLoss", "alpha": alpha}}
    return data | ({"loss": loss | {"kind": "MeanFlowLoss"}} if loss else {})


def present_names(
    data: dict[str, Any], changes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """An experiment and changes to it by dotted name, with the names of version 2 replaced.

    ``ddpm.*`` becomes ``loss.*`` of a DDPM. ``loss.alpha.*`` of a MeanFlowLoss makes it an
    AlphaFlowLoss with the same other fields; ``loss.alpha`` = None reverts that.
    """
    data = {name: value for name, value in data.items() if name != "schema"}
    changes, loss = dict(changes), data["loss"]
    for name in [n for n in changes if n == "ddpm" or n.startswith("ddpm.")]:
        value = changes.pop(name)
        if name != "ddpm":
            changes |= {"loss.kind": "DDPM", f"loss{name.removeprefix('ddpm')}": value}
        elif value is None and loss["kind"] == "DDPM":
            changes["loss.kind"] = "MeanFlowLoss"
    if "loss.alpha" in changes and changes["loss.alpha"] is None:
        del changes["loss.alpha"]
        if loss["kind"] == "AlphaFlowLoss":
            loss = {name: value for name, value in loss.items() if name != "alpha"}
            loss["kind"] = "MeanFlowLoss"
    alpha = any(name.startswith("loss.alpha.") for name in changes)
    if alpha and loss["kind"] == "MeanFlowLoss" and "loss.kind" not in changes:
        kept = {n: v for n, v in loss.items() if n not in OF_MEAN_FLOW or v != OF_MEAN_FLOW[n]}
        loss = kept | {"kind": "AlphaFlowLoss"}
    return data | {"loss": loss}, changes


OF_MEAN_FLOW = {"gamma": 0.0, "difference": None, "tangent_warmup": 0.0}
"""The neutral values of what a MeanFlowLoss has and an AlphaFlowLoss lacks."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _average_by_step,
    2: _one_objective,
}
"""Functions that migrate from each older version to the next."""
