"""The mean and covariance of features as a value, and in the file formats of published ones."""

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

from vamf.errors import first_line
from vamf.files import ZIP, seems, write_whole

Protocol = Mapping[str, str]
"""What statistics must share to be compared: extractor, weights, quantisation, resolution."""

NAMES = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
"""Names of mean and covariance: of pytorch-fid, EDM and ADM, and of MeanFlow's JAX code."""

ROUNDING = 1e-4
"""Allowed deviation of a covariance from symmetry and positivity, relative to its largest variance:
100 times that of float32."""

Maker = Literal["vamf", "ADM", "MeanFlow", "unknown"]
"""The code that wrote a file, guessed from its arrays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStatistics:
    """The Gaussian fitted to a set of features, for a Fréchet distance; float64."""

    mean: Float[Tensor, " features"]
    covariance: Float[Tensor, "features features"]
    """The unbiased one, divided by count - 1."""
    count: int | None
    """The number of samples; None if a file does not say."""

    def save(self, path: Path, protocol: Protocol | None = None) -> None:
        """Writes mu, sigma, n and the protocol to an npz file, for pytorch-fid and for ``load``.

        The file is written atomically.
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

        Other arrays, such as ADM's mu_s, sigma_s and images, are ignored. Raises ValueError for a
        file that is not such an npz, is damaged, lacks an array, or whose arrays are not a mean and
        a covariance, and for one whose protocol is not the given one. Files without a protocol are
        accepted; ``maker`` guesses their origin. Features of images that were resized in another
        way (pytorch-fid, MeanFlow) must not be compared with ours (TensorFlow 1's resize).
        """
        arrays = _read(path)
        names = next((pair for pair in NAMES if arrays.keys() >= {*pair}), None)
        if names is None:
            wanted = "mu and sigma, or ref_mu and ref_sigma"
            raise ValueError(f"{path} must hold {wanted}; got {_array_names(path)}")
        mean, covariance = (_real(path, name, arrays[name]) for name in names)
        if mean.ndim != 1 or len(mean) < 1 or covariance.shape != (len(mean), len(mean)):
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise ValueError(f"{path} must hold {names[0]} (d,), {names[1]} (d, d); got {shapes}")
        require_gaussian(f"{path}: {names[0]} and {names[1]}", mean, covariance)
        if protocol and "protocol" in arrays:
            _compare(path, _protocol(path, arrays["protocol"]), protocol)
        count = _count(path, arrays["n"]) if "n" in arrays else None
        # Symmetric ones stay bit for bit the same.
        return cls(mean=mean, covariance=(covariance + covariance.T) / 2, count=count)


def require_gaussian(what: str, mean: Tensor, covariance: Tensor) -> None:
    """Raises ValueError, which begins with ``what``, unless these can be mean and covariance.

    Both must be finite, and the covariance symmetric and without negative eigenvalues, up to
    ``ROUNDING``.
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
    """Whether no eigenvalue is below -``allowed``; Cholesky is faster than eigenvalues."""
    if allowed == 0:  # no feature varies
        return not bool(covariance.any())
    shifted = (covariance + covariance.T) / 2
    shifted.diagonal().add_(allowed)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def maker(path: Path) -> Maker:
    """The code that wrote a file that ``load`` reads, by the names of its arrays.

    vamf's files have a protocol. ADM's evaluator (mu_s, sigma_s) is TensorFlow's network with
    its own resize, as torch-fidelity's is. MeanFlow's and iMF's JAX code (ref_mu, ref_sigma)
    resizes with half-pixel centres. mu and sigma alone are ambiguous: pytorch-fid's resize has
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
    """The arrays that ``load`` uses; ValueError for a damaged file, or no npz without pickles."""
    wanted = {"n", "protocol", *NAMES[0], *NAMES[1]}
    try:
        with ZipFile(path) as archive:
            _require_all_members(path, archive)
            # Read to the end, where the checksum is checked: NumPy stops where its header says.
            return {
                name: np.load(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
                for name in wanted
                if f"{name}.npy" in archive.namelist()
            }
    except (
        Exception
    ) as error:  # zipfile, zlib and NumPy raise many types of error for damaged bytes
        raise ValueError(
            f"{path} is no file of statistics, an npz with mu and sigma: {_seems(path, error)}"
        ) from None


def _require_all_members(path: Path, archive: ZipFile) -> None:
    """Raises BadZipFile if a damaged list of members hides one, which Python does not notice."""
    with path.open("rb") as file:
        file.seek(-22 - len(archive.comment), os.SEEK_END)
        count = int.from_bytes(file.read(22)[10:12], "little")
    members = archive.infolist()
    if count not in (len(members), 0xFFFF):  # 0xFFFF: the number is stored elsewhere
        raise BadZipFile(f"{len(members)} of {count} arrays")
    for member in members:
        archive.open(member).close()  # raises if its two stored names differ


def _seems(path: Path, error: Exception) -> str:
    """What kind of file this is, or else why it could not be read."""
    kind = seems(path)
    if kind and kind != ZIP:
        return kind
    if isinstance(error, BadZipFile) and not kind:
        return "it is no zip file"
    return f"it seems to be damaged: {first_line(error)[:200]}"


def _array_names(path: Path) -> str:
    """The names of a file's arrays, and what they usually contain instead of statistics."""
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
    """Real numbers of any type as float64; ValueError for other arrays."""
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
