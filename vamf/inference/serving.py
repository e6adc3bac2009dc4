"""Serves an exported network: a request gives a count and a seed, and receives images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from vamf.inference.load import Trained, load
from vamf.inference.sampling import generator_of, in_parts
from vamf.metrics.quantize import to_uint8

MOST = 10_000
"""The largest number of images in one row of a request."""

WHOLE = ("count", "seed", "label", "steps")
REAL = ("scale", "t_min", "t_max")
COLUMNS = {**dict.fromkeys(WHOLE, "long"), **dict.fromkeys(REAL, "double")}
"""The columns of a request, with MLflow's types; only ``count`` is required."""


class Served:
    """A trained network that answers requests."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    @classmethod
    def load(cls, file: Path) -> Self:
        """Loads an exported file, on a GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(load(file, device))

    def images(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The images of all rows, (n, height, width, channels) uint8; or points, (n, dim).

        A row has ``count``, and optionally ``seed`` (default 0), ``label`` (default -1: random
        classes), ``steps``, the guidance ``scale`` and its times ``t_min`` and ``t_max`` (default:
        the experiment's). The same row always gives the same images; a larger count starts with the
        images of a smaller one. Raises ValueError for other columns or invalid values.
        """
        return np.concatenate([self._row(row) for row in rows])

    def _row(self, row: Mapping[str, Any]) -> np.ndarray:
        unknown = sorted(set(row) - set(COLUMNS))
        if unknown or "count" not in row:
            names = ", ".join([*COLUMNS][1:])
            raise ValueError(f"a request holds count, and perhaps {names}; got {[*row]}")
        own = self.trained.experiment.evaluation
        count, seed, label, steps = (
            _whole(name, row.get(name, default))
            for name, default in zip(WHOLE, (None, 0, -1, own.sampling_steps), strict=True)
        )
        if not 1 <= count <= MOST:
            raise ValueError(f"count must lie in 1, ..., {MOST}; got {count}")
        chosen = None if label == -1 else label
        usual = own.guidance_scale, own.guidance_t_min, own.guidance_t_max
        scale, first, last = (
            _number(name, row.get(name, default)) for name, default in zip(REAL, usual, strict=True)
        )
        generate = generator_of(
            self.trained,
            steps=steps,
            seed=seed,
            label=chosen,
            scale=scale,
            interval=(first, last),
        )
        return _as_array(torch.cat(list(in_parts(generate, count))))


def _whole(name: str, value: Any) -> int:
    """A number of a request as an integer; JSON and tables may hold it as a float."""
    try:
        if float(value) == int(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be a whole number; got {value!r}")


def _number(name: str, value: Any) -> float:
    """A number of a request."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number; got {value!r}") from None


def _as_array(samples: torch.Tensor) -> np.ndarray:
    if samples.ndim != 4:
        return samples.numpy()
    return to_uint8(samples).permute(0, 2, 3, 1).numpy()
