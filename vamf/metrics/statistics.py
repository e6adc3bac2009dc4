"""The mean and covariance of features as a value, and as the files that peers publish."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vamf.files import write_whole

Protocol = Mapping[str, str]
"""What statistics must share to be compared: extractor, weights, quantisation, resolution."""

NAMES = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
"""Of mean and covariance: pytorch-fid's and ADM's, and those of MeanFlow's JAX code."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStatistics:
    """The Gaussian that a Fréchet distance sees of a set of features; float64."""

    mean: Float[Tensor, " features"]
    covariance: Float[Tensor, "features features"]
    """The unbiased one, divided by count - 1."""
    count: int | None
    """How many features were seen; None where a file does not say."""

    def save(self, path: Path, protocol: Protocol | None = None) -> None:
        """Writes mu, sigma, n and the protocol to an npz file, for pytorch-fid and for ``load``.

        Another process sees all of it or nothing.
        """
        arrays: dict[str, Any] = {"mu": self.mean.cpu(), "sigma": self.covariance.cpu()}
        if self.count is not None:
            arrays["n"] = self.count
        if protocol is not None:
            arrays["protocol"] = json.dumps(dict(protocol))
        write_whole(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path, protocol: Protocol | None = None) -> Self:
        """Reads mu and sigma (or ref_mu and ref_sigma), and n if it is there, onto the CPU.

        Whatever else a file holds, such as ADM's mu_s, sigma_s and images, is left alone. Raises
        ValueError for a file that is no such npz, lacks an array or is of another shape, and for
        one whose own protocol is not the given one; files without a protocol are taken at their
        word.
        """
        arrays = _read(path)
        names = next((pair for pair in NAMES if arrays.keys() >= {*pair}), None)
        if names is None:
            found = ", ".join(sorted(arrays)) or "nothing of these"
            raise ValueError(f"{path} must hold mu and sigma, or ref_mu and ref_sigma; got {found}")
        mean, covariance = (torch.from_numpy(arrays[name]).double() for name in names)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise ValueError(f"{path} must hold {names[0]} (d,), {names[1]} (d, d); got {shapes}")
        if protocol and "protocol" in arrays:
            _compare(path, json.loads(str(arrays["protocol"])), protocol)
        count = int(arrays["n"]) if "n" in arrays else None
        return cls(mean=mean, covariance=covariance, count=count)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays that concern us; ValueError if the file is no npz without pickles."""
    wanted = {"n", "protocol", *NAMES[0], *NAMES[1]}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in stored.files if name in wanted}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise ValueError(f"{path} is no file of statistics: {error}") from None


def _compare(path: Path, made_by: Protocol, wanted: Protocol) -> None:
    differ = [
        f"{name} {made_by[name]} there, {wanted[name]} here"
        for name in sorted(made_by.keys() & wanted.keys())
        if made_by[name] != wanted[name]
    ]
    if differ:
        raise ValueError(f"{path} holds statistics of another protocol: {', '.join(differ)}")
