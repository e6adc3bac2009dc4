"""Published values of arXiv 2605.09235 (v1), to compare with ours.

Sliced Wasserstein distances of one-step samples, means over three seeds; the second number is the
standard error of that mean, where it is given.
"""

from typing import NamedTuple


class PaperValue(NamedTuple):
    """A mean and its standard error; None if that is not given."""

    mean: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


TOYS: dict[str, dict[float, tuple[PaperValue, PaperValue]]] = {
    "checkerboard": {
        0.0: (PaperValue(0.175, 0.036), PaperValue(0.234, 0.042)),
        1.0: (PaperValue(0.134, 0.029), PaperValue(0.175, 0.046)),
    },
    "eight_gaussians": {
        0.0: (PaperValue(0.098, 0.016), PaperValue(0.151, 0.022)),
        1.0: (PaperValue(0.085, 0.010), PaperValue(0.146, 0.023)),
    },
    "two_moons": {
        0.0: (PaperValue(0.093, 0.028), PaperValue(0.177, 0.068)),
        1.0: (PaperValue(0.072, 0.019), PaperValue(0.093, 0.025)),
    },
}
"""SW1 and SW2 by set and beta (table of the toys; beta = 1 with the moving average's tangent and,
by the text, an anchor that no stored version of the code contains)."""

DGMM: dict[int, tuple[float, ...]] = {
    2: (0.152, 0.151, 0.149, 0.148, 0.149, 0.150, 0.150, 0.148, 0.148, 0.148, 0.146),
    4: (0.083, 0.083, 0.083, 0.083, 0.083, 0.084, 0.083, 0.083, 0.083, 0.083, 0.083),
    8: (0.062,) * 11,
    16: (0.044,) * 11,
    32: (0.034, 0.034, 0.037, 0.038, 0.041, 0.041, 0.035, 0.034, 0.036, 0.037, 0.036),
    64: (0.028, 0.027, 0.028, 0.028, 0.025, 0.026, 0.026, 0.026, 0.027, 0.027, 0.028),
}
"""SW1 by dimension at beta = 0, .1, ..., 1 (figure of the DGMM sweep; centres redrawn)."""

DGMM_ERRORS: dict[int, dict[float, float]] = {
    2: {0.0: 0.022, 1.0: 0.015},
    4: {0.0: 0.011, 1.0: 0.011},
    8: {0.0: 0.003, 1.0: 0.003},
    64: {0.0: 0.003, 0.4: 0.000, 1.0: 0.001},
}
"""Standard errors of some values of DGMM."""

GRADIENT_RATIO = "1.2 to 4.3 over six sets (4.71 on eight_gaussians, one seed, in another version)"
"""Gradient variance at beta = 0 over that at beta = 1 on the toys."""


def sliced_wasserstein(name: str, beta: float) -> tuple[PaperValue | None, PaperValue | None]:
    """The paper's SW1 and SW2 of a set at beta; None where it reports none.

    Its mixtures redraw their centres for every batch, so there are no values for fixed centres.
    """
    if name in TOYS:
        return TOYS[name].get(beta, (None, None))
    parts = name.split("_")
    tenth = round(beta * 10)
    if parts[0] != "dgmm" or parts[-1] != "redrawn" or abs(tenth - 10 * beta) > 1e-9:
        return None, None
    dim = int(parts[1])
    return PaperValue(DGMM[dim][tenth], DGMM_ERRORS.get(dim, {}).get(tenth / 10)), None
