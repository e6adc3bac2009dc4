"""The linear path between data and noise (Mean Flows, arXiv 2505.13447, section 3)."""

from vamf.typing import Sample, Time, expand_like


def interpolate(x: Sample, e: Sample, t: Time) -> tuple[Sample, Sample]:
    """Returns the point z = (1 - t) x + t e and the conditional velocity v_cond = e - x.

    ``x`` is data (t = 0) and ``e`` noise (t = 1), both (batch, ...); ``t`` is (batch,) in [0, 1].
    """
    s = expand_like(t, x)
    return (1 - s) * x + s * e, e - x
