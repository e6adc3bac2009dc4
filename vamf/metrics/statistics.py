"""The mean and covariance of features as a value, and as the files that peers publish."""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vamf.files import ZIP, seems, write_whole

Protocol = Mapping[str, str]
"""What statistics must share to be compared: extractor, weights, quantisation, resolution."""

NAMES = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
"""Of mean and covariance: pytorch-fid's, EDM's and ADM's, and those of MeanFlow's JAX code."""

ROUNDING = 1e-4
"""How far from symmetric and from positive a covariance may be, over its largest variance: float32
leaves a hundredth of that."""

Maker = Literal["vamf", "ADM", "MeanFlow", "unknown"]
"""Whose code wrote a file, as far as its arrays tell."""


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
        ValueError for a file that is no such npz, is damaged, lacks an array, or holds what is no
        mean and covariance, and for one whose own protocol is not the given one; files without a
        protocol are taken at their word, and ``maker`` tells what little they say. Features that
        come from another resize of the images (pytorch-fid's, MeanFlow's) must not be mixed with
        those of TensorFlow 1's, which are ours.
        """
        arrays = _read(path)
        names = next((pair for pair in NAMES if arrays.keys() >= {*pair}), None)
        if names is None:
            wanted = "mu and sigma, or ref_mu and ref_sigma"
            raise ValueError(f"{path} must hold {wanted}; got {_told(path)}")
        mean, covariance = (_real(path, name, arrays[name]) for name in names)
        if mean.ndim != 1 or len(mean) < 1 or covariance.shape != (len(mean), len(mean)):
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise ValueError(f"{path} must hold {names[0]} (d,), {names[1]} (d, d); got {shapes}")
        require_gaussian(f"{path}: {names[0]} and {names[1]}", mean, covariance)
        if protocol and "protocol" in arrays:
            _compare(path, _protocol(path, arrays["protocol"]), protocol)
        count = _count(path, arrays["n"]) if "n" in arrays else None
        # Of symmetric ones it is the same, bit for bit.
        return cls(mean=mean, covariance=(covariance + covariance.T) / 2, count=count)


def require_gaussian(what: str, mean: Tensor, covariance: Tensor) -> None:
    """Raises ValueError, which begins with ``what``, unless these can be mean and covariance.

    Finite, and the covariance symmetric and without negative eigenvalues, up to ``ROUNDING``.
    """
    bad = sum(int((~part.isfinite()).sum()) for part in (mean, covariance))
    if bad:
        raise ValueError(f"{what} must be finite; got {bad} values that are not")
    variances = covariance.diagonal()
    if (least := float(variances.min())) < 0 and -least > ROUNDING * float(variances.max()):
        raise ValueError(f"{what} must have no negative variance; got {least:.3g}")
    allowed = ROUNDING * float(variances.max())
    if (apart := float((covariance - covariance.T).abs().max())) > allowed:
        raise ValueError(f"{what} must have a symmetric covariance; got entries {apart:.3g} apart")
    if not _positive(covariance, allowed):
        least = float(torch.linalg.eigvalsh(covariance)[0])
        raise ValueError(
            f"{what} must have a covariance without negative eigenvalues; got {least:.3g}"
        )


def _positive(covariance: Tensor, allowed: float) -> bool:
    """Whether no eigenvalue is below -``allowed``: Cholesky is far quicker than they are."""
    if allowed == 0:  # no feature varies
        return not bool(covariance.any())
    shifted = (covariance + covariance.T) / 2
    shifted.diagonal().add_(allowed)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def maker(path: Path) -> Maker:
    """Whose code wrote a file that ``load`` reads, by the names of its arrays.

    vamf's says what its features are. ADM's evaluator (mu_s, sigma_s) is TensorFlow's network with
    its own resize, as torch-fidelity's is. MeanFlow's and iMF's JAX code (ref_mu, ref_sigma)
    resizes with half-pixel centres. mu and sigma alone may be anybody's: pytorch-fid's resize has
    half-pixel centres too, EDM's is TensorFlow's.
    """
    with ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    if "protocol" in names:
        return "vamf"
    if names >= {"mu_s", "sigma_s"}:
        return "ADM"
    return "MeanFlow" if names >= {*NAMES[1]} and not names >= {*NAMES[0]} else "unknown"


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays that concern us; ValueError if the file is no npz without pickles, or damaged."""
    wanted = {"n", "protocol", *NAMES[0], *NAMES[1]}
    try:
        with ZipFile(path) as archive:
            _require_all_members(path, archive)
            # Read whole, by which the checksum is checked: NumPy stops where its header says.
            return {
                name: np.load(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
                for name in wanted
                if f"{name}.npy" in archive.namelist()
            }
    except Exception as error:  # of damaged bytes zipfile, zlib and NumPy raise a dozen kinds
        raise ValueError(
            f"{path} is no file of statistics, an npz with mu and sigma: {_seems(path, error)}"
        ) from None


def _require_all_members(path: Path, archive: ZipFile) -> None:
    """Raises BadZipFile if a wrong byte in the list of members hides one, which Python allows."""
    with path.open("rb") as file:
        file.seek(-22 - len(archive.comment), os.SEEK_END)
        count = int.from_bytes(file.read(22)[10:12], "little")
    members = archive.infolist()
    if count not in (len(members), 0xFFFF):  # the latter stands for a number elsewhere
        raise BadZipFile(f"{len(members)} of {count} arrays")
    for member in members:
        archive.open(member).close()  # its name must be the same in both places


def _seems(path: Path, error: Exception) -> str:
    """What a file that could not be read is, or else why it could not."""
    kind = seems(path)
    if kind and kind != ZIP:
        return kind
    if isinstance(error, BadZipFile) and not kind:
        return "it is no zip file"
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"it seems to be damaged: {line[:200]}"


def _told(path: Path) -> str:
    """The names of a file's arrays, and what they are known to be instead of statistics."""
    with ZipFile(path) as archive:
        names = sorted(name.removesuffix(".npy") for name in archive.namelist())
    listed = ", ".join(names[:8]) + ", ..." * (len(names) > 8) or "nothing"
    if "pool_3" in names:
        return f"{listed}: pool_3 holds the features themselves"
    if "arr_0" in names:
        return f"{listed}: arr_0 holds images"
    if {"m", "s"} <= {*names} or {"mean", "cov"} <= {*names}:
        return f"{listed}: statistics by other names"
    return listed


def _real(path: Path, name: str, array: np.ndarray) -> Tensor:
    """Any real numbers as float64; ValueError for others."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold real numbers as {name}; got {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _count(path: Path, array: np.ndarray) -> int:
    value = float(array) if array.shape == () and array.dtype.kind in "fiu" else None
    if value is None or not (value.is_integer() and value >= 2):
        got = value if value is not None else f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"{path} must hold n, a whole number of at least 2; got {got}")
    return int(value)


def _protocol(path: Path, array: np.ndarray) -> dict[str, str]:
    try:
        found = json.loads(str(array))
    except ValueError:
        found = None
    if not (isinstance(found, dict) and all(isinstance(v, str) for v in found.values())):
        got = " ".join(str(array).split())[:80]
        raise ValueError(f"{path} must hold its protocol as JSON, names and texts; got {got}")
    return found


def _compare(path: Path, made_by: Protocol, wanted: Protocol) -> None:
    differ = [
        f"{name} {made_by[name]} there, {wanted[name]} here"
        for name in sorted(made_by.keys() & wanted.keys())
        if made_by[name] != wanted[name]
    ]
    if differ:
        raise ValueError(f"{path} holds statistics of another protocol: {', '.join(differ)}")
