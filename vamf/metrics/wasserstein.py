"""The sliced Wasserstein distance: optimal transport of one-dimensional projections."""

import torch

from vamf.typing import Sample


def sliced_wasserstein(
    a: Sample, b: Sample, *, directions: int = 500, generator: torch.Generator
) -> tuple[float, float]:
    """(SW1, SW2) of two equally large sets of points, along the same random directions.

    Directions are N / |N| with N standard normal. Each projection's optimal plan joins the sorted
    points, and SW_p = (mean over directions and points of |difference|^p)^(1/p); there is no
    factor for the dimension. Between two sets of n points of one distribution it is about
    1 / sqrt(n), not zero. Computed in float64; samples of any shape are flattened.

    Raises ValueError for sets of different shapes, for empty ones, or for no direction.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"a and b must have the same shape; got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if len(a) < 1:
        raise ValueError(f"a and b must have at least 1 sample; got {len(a)}")
    if directions < 1:
        raise ValueError(f"directions must be at least 1; got {directions}")
    a, b = a.double().flatten(1), b.double().flatten(1)
    normal = torch.randn(directions, a.shape[1], generator=generator, device=generator.device)
    unit = (normal.double() / normal.double().norm(dim=1, keepdim=True)).to(a.device)
    difference = ((unit @ a.T).sort(dim=1).values - (unit @ b.T).sort(dim=1).values).abs()
    return float(difference.mean()), float(difference.square().mean().sqrt())
