"""Rules for beta: constant, scheduled over training (arXiv 2605.09235), or a function of time."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from vamf.typing import Beta, Time


@runtime_checkable
class BetaRule(Protocol):
    """A choice of beta, the proxy's weight in the tangent, for every training step."""

    @property
    def label(self) -> str:
        """The rule in a few characters, for the names of runs: ``β=0.750``."""
        ...

    @property
    def varies_over_training(self) -> bool:
        """Whether beta depends on the training step."""
        ...


@runtime_checkable
class PlannedBeta(BetaRule, Protocol):
    """A rule that is fixed before training: beta depends on progress and time alone."""

    def at(self, progress: float, t: Time) -> Beta:
        """beta in [0, 1] of samples at the times ``t``, (batch,): one number, or (batch,).

        ``progress`` in [0, 1] is the training step, counted from 0, over the number of steps.
        """
        ...


def _check_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1]; got {value}")


@dataclass(frozen=True, kw_only=True)
class BetaSchedule:
    """beta as a function of training progress in [0, 1].

    With p = clip((progress - begin) / (finish - begin), 0, 1): ``linear`` is
    value + (end - value) p; ``cosine`` is end + (value - end) (1 + cos(pi p)) / 2; ``step`` jumps
    from value to end at ``finish``. Step k of n, counted from 0, is at progress k / n, as in the
    code of arXiv 2605.09235.
    """

    value: float = 0.0
    """beta in [0, 1], constant or at the start: 0 is MeanFlow's tangent, 1 the proxy alone."""
    shape: Literal["constant", "linear", "cosine", "step"] = "constant"
    """How beta changes from `value` to `end`."""
    end: float | None = None
    """beta at the end, in [0, 1]; not for a constant."""
    begin: float = 0.0
    """Progress in [0, 1) at which beta starts to change."""
    finish: float = 1.0
    """Progress in (begin, 1] at which beta is `end`; 1 is one step after the last."""

    def __post_init__(self) -> None:
        _check_unit("beta", self.value)
        if self.shape == "constant":
            if (self.end, self.begin, self.finish) != (None, 0.0, 1.0):
                raise ValueError("a constant beta takes no end, begin or finish; choose its shape")
            return
        if self.end is None:
            raise ValueError(f"a {self.shape} beta needs an end")
        _check_unit("the end of beta", self.end)
        if not 0 <= self.begin < self.finish <= 1:
            raise ValueError(
                f"beta needs 0 <= begin < finish <= 1; got {self.begin} and {self.finish}"
            )
        if self.shape == "step" and (self.begin or self.finish == 1):
            raise ValueError(
                f"a step of beta happens at finish < 1 and takes no begin; "
                f"got {self.finish} and {self.begin}"
            )

    @property
    def varies_over_training(self) -> bool:
        """Whether beta changes from `value` to `end`."""
        return self.end is not None

    def __call__(self, progress: float) -> float:
        if self.end is None:
            return self.value
        p = min(max((progress - self.begin) / (self.finish - self.begin), 0.0), 1.0)
        match self.shape:
            case "step":
                return self.value if p < 1 else self.end
            case "cosine":
                return self.end + (self.value - self.end) * (1 + math.cos(math.pi * p)) / 2
        return self.value + (self.end - self.value) * p

    def at(self, progress: float, t: Time) -> Beta:
        """beta of samples at times ``t``: the same number for all."""
        return self(progress)

    @property
    def label(self) -> str:
        """The rule in a few characters: ``β=0.750`` or ``β=1.000→0.000 cosine``."""
        if self.end is None:
            return f"β={self.value:.3f}"
        return f"β={self.value:.3f}→{self.end:.3f} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class BetaOfTime:
    """beta as a function of a sample's time t, constant over training.

    Linear between its values at t = 0 (data), t = 1/2 and t = 1 (noise).
    """

    at_data: float = 0.0
    """beta in [0, 1] at t = 0."""
    at_half: float = 0.0
    """beta in [0, 1] at t = 1/2."""
    at_noise: float = 0.0
    """beta in [0, 1] at t = 1."""

    def __post_init__(self) -> None:
        for name in ("at_data", "at_half", "at_noise"):
            _check_unit(f"beta.{name}", getattr(self, name))

    @property
    def varies_over_training(self) -> bool:
        """False: beta depends on the time t alone."""
        return False

    def at(self, progress: float, t: Time) -> Beta:
        """beta of samples at times ``t``, (batch,); one number if it is constant."""
        if self.at_data == self.at_half == self.at_noise:
            return self.at_half
        near_data = self.at_data + (self.at_half - self.at_data) * 2 * t
        near_noise = self.at_half + (self.at_noise - self.at_half) * (2 * t - 1)
        return near_data.where(t < 0.5, near_noise)

    @property
    def label(self) -> str:
        """The rule in a few characters: ``β(t)=0.100 0.500 0.900``."""
        if self.at_data == self.at_half == self.at_noise:
            return f"β={self.at_half:.3f}"
        return f"β(t)={self.at_data:.3f} {self.at_half:.3f} {self.at_noise:.3f}"
