"""Images that come with an installed package: no download, the same bytes for everyone."""

from dataclasses import dataclass

import numpy as np
import torch

from vamf.data.dataset import ImageSet, Split


@dataclass(frozen=True, kw_only=True)
class Digits:
    """scikit-learn's digits: 1,797 grey 8x8 images of ten classes, 1,347 train and 450 test."""

    def load(self, split: Split) -> ImageSet:
        """The images of one split, (N, 1, 8, 8), in the order of the fixed permutation.

        The split is the first 1,347 and last 450 of ``RandomState(0).permutation(1797)``: NumPy
        has frozen RandomState's stream, so it never changes. The grey levels 0 to 16 are stored
        as round(255 / 16 * level).
        """
        # scikit-learn takes seconds to import; only this function needs it.
        from sklearn.datasets import load_digits

        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
        levels, labels = load_digits(return_X_y=True)
        order = np.random.RandomState(0).permutation(len(levels))
        chosen = order[:1347] if split == "train" else order[1347:]
        pixels = np.rint(levels[chosen] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
        return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels[chosen]).long())
