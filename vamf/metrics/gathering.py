"""Computes features of many images on all workers; the result does not depend on their number."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from vamf.distributed import Workers
from vamf.metrics.extractors import Extractor
from vamf.metrics.moments import FeatureMoments
from vamf.typing import Features, Pixels

AT_ONCE = 250
"""Images that are generated or read at once."""

PixelsAt = Callable[[range], Pixels]
"""The images at the given indices; each depends on its index alone."""


class Gathered(NamedTuple):
    """The features of all workers' images; the same on every worker."""

    blocks: list[FeatureMoments]
    """Moments of consecutive groups of images, whose sizes differ by at most 1."""
    features: Features | None
    """All features in the images' order, float32 on the CPU; None unless ``keep``."""


def gather(
    extractor: Extractor, pixels: PixelsAt, n: int, blocks: int, workers: Workers, *, keep: bool
) -> Gathered:
    """Features of the images 0, ..., n - 1, computed in pieces by all workers.

    The extractor and the moments are on the workers' device. Collective: all workers call it.
    """
    device = workers.device
    moments = [FeatureMoments(extractor.dim, device) for _ in range(blocks)]
    kept = torch.zeros(n if keep else 0, extractor.dim, device=device)
    pieces = [(k, piece) for k in range(blocks) for piece in _pieces(_block(n, blocks, k))]
    for index in workers.mine(len(pieces)):
        block, piece = pieces[index]
        features = extractor(pixels(piece).to(device))
        moments[block].update(features)
        if keep:
            kept[piece.start : piece.stop] = features
    if workers.world > 1:
        for part in moments:
            part.all_reduce()
    assert sum(part.count for part in moments) == n
    return Gathered(moments, workers.sum(kept).cpu() if keep else None)


def _block(n: int, blocks: int, index: int) -> range:
    return range(n * index // blocks, n * (index + 1) // blocks)


def _pieces(indices: range) -> list[range]:
    return [indices[start : start + AT_ONCE] for start in range(0, len(indices), AT_ONCE)]
