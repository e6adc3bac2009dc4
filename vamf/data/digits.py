"""scikit-learn's handwritten digits, which are installed with the package: no download."""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from vamf.compat.sklearn import digits_csv
from vamf.data.dataset import ImageSet, Split
from vamf.flow.oracle import EmpiricalVelocity


@dataclass(frozen=True, kw_only=True)
class Digits:
    """scikit-learn's digits: 1,797 grey 8x8 images of ten classes, 1,347 train and 450 test."""

    has_exact_velocity: ClassVar[bool] = True
    """Whether the marginal velocity has a closed form."""
    classes: ClassVar[int] = 10
    """The number of classes."""
    shape: ClassVar[tuple[int, ...]] = (1, 8, 8)
    """The shape of an image."""

    def velocity(self) -> EmpiricalVelocity:
        """The marginal velocity of the training images themselves, not of their population."""
        return EmpiricalVelocity(self.load("train").images)

    def load(self, split: Split) -> ImageSet:
        """The images of one split, (N, 1, 8, 8), in the order of the fixed permutation.

        The split is the first 1,347 and last 450 of ``RandomState(0).permutation(1797)``: NumPy
        has frozen RandomState's stream, so it never changes. The grey levels 0 to 16 are stored
        as round(255 / 16 * level).
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
        levels, labels = _read_digits()
        order = np.random.RandomState(0).permutation(len(levels))
        chosen = order[:1347] if split == "train" else order[1347:]
        pixels = np.rint(levels[chosen] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
        return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels[chosen]).long())


@cache
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels from 0 to 16, (1797, 64), and labels (1797,)."""
    table = np.loadtxt(digits_csv(), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)
