"""Classifier-free guidance inside the target: one evaluation a step when sampling.

A conditional network is u(z, r, t, y), where u(z, r, t) is that of no class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vamf.flow.tangents import mix_tangent
from vamf.typing import Beta, Label, Sample, Scalars, Time, expand_like

LabelledVelocity = Callable[..., Sample]
"""v(z, t, y), or v(z, t, y, kappa) of a network that is told of kappa; v(z, t) of no class."""


class Guided(NamedTuple):
    """What takes the place of v_cond; and what is left to do."""

    velocity: Sample | None
    """v_g, or all of it but the network's own velocity at labels, where ``own`` is not 0."""
    beta: Beta
    """What is left to mix the tangent with."""
    own: Scalars | None = None
    """Of each sample, the weight of sg[u(z, t, t, y)] that is yet to be added to ``velocity``."""


class Labels(NamedTuple):
    """What is known of a batch, or was dropped."""

    y: Label
    """Class indices; the number of classes itself where the label was dropped."""
    dropped: Label
    """Truth values: whether it was."""
    kappa: Scalars | None = None
    """1 - 1 / scale of the scale that each sample is guided with, 0 where the label was dropped;
    None if that is fixed."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """v_g = omega v_cond + (1 - omega - cfg_kappa) u(z, t, t) + cfg_kappa u(z, t, t, y).

    Takes the place of v_cond, in target and tangent (arXiv 2505.13447, section 4.2 and appendix);
    samples whose label was dropped keep v_cond, so that u of no class is the unconditional flow,
    whose variances and landscapes are those that evaluation shows. omega = 1 and cfg_kappa = 0
    condition without guiding.

    ``tangent``: v_g is the trained network's, and the tangent (1 - beta) v_g + beta v_hat, as
    without guidance. ``parameters``, as in the code of arXiv 2605.09235 and not as in its text:
    tangent and target are both (1 - beta) v_g + beta v_g', v_g' evaluated by the moving average, so
    that v_cond keeps its weight omega at every beta.

    With ``max_scale`` omega is 1, and cfg_kappa is 1 - 1 / scale of a scale that is drawn for each
    sample and told to the network, as in improved Mean Flows (arXiv 2512.02012 and its code).
    """

    omega: float = 1.0
    """Weight of v_cond, positive; the guidance scale is omega / (1 - cfg_kappa)."""
    cfg_kappa: float = 0.0
    """Weight of the network's own conditional velocity, in [0, 1)."""
    dropout: float = 0.1
    """Probability that a sample's label is dropped, in [0, 1)."""
    t_min: float = 0.0
    """Earliest time of guidance: outside of [t_min, t_max] a sample keeps v_cond."""
    t_max: float = 1.0
    """Latest time of guidance."""
    mixing: Literal["tangent", "parameters"] = "tangent"
    """What beta mixes: the jvp's tangent, or the parameters that evaluate the guidance."""
    max_scale: float | None = None
    """Draw a guidance scale for each sample, from 1 to this with a density that falls as its
    inverse, and tell the network (model.guided): it is then chosen in sampling
    (evaluation.guidance_scale)."""

    def __post_init__(self) -> None:
        if not (self.omega > 0 and 0 <= self.cfg_kappa < 1 and 0 <= self.dropout < 1):
            raise ValueError(
                "guidance needs omega > 0, and cfg_kappa and dropout in [0, 1); "
                f"got {self.omega}, {self.cfg_kappa} and {self.dropout}"
            )
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(
                f"guidance needs 0 <= t_min < t_max <= 1; got {self.t_min} and {self.t_max}"
            )
        if self.max_scale is None:
            return
        if not 1 < self.max_scale < float("inf"):
            raise ValueError(f"guidance.max_scale must be finite and over 1; got {self.max_scale}")
        if (self.omega, self.cfg_kappa) != (1, 0):
            raise ValueError(
                "with guidance.max_scale the weights follow from each sample's scale: omega and "
                f"cfg_kappa must be 1 and 0; got {self.omega} and {self.cfg_kappa}"
            )

    def draw_kappa(self, n: int, generator: torch.Generator) -> Scalars | None:
        """1 - 1 / scale of n samples, log-uniform scales as in iMF's code; None if it is fixed."""
        if self.max_scale is None:
            return None
        uniform = torch.rand(n, generator=generator, device=generator.device)
        return 1 - self.max_scale**-uniform

    def velocity(
        self,
        v: LabelledVelocity,
        z: Sample,
        t: Time,
        v_cond: Sample,
        y: Label,
        kappa: Scalars | None = None,
        without: int = 0,
    ) -> Sample:
        """v_g, with ``v`` the boundary velocity sg[u(z, t, t, y)]; no weight, no evaluation.

        ``kappa``, if given, is each sample's in the place of ``cfg_kappa``, of which the network is
        told. The first ``without`` samples are left without their own velocity at labels.
        """
        guided = self.omega * v_cond
        if kappa is not None or self.omega + self.cfg_kappa != 1:
            null = 1 - self.omega - (self.cfg_kappa if kappa is None else expand_like(kappa, z))
            guided = guided + null * v(z, t)
        if self._takes_own(kappa) and without < len(z):
            given = [a[without:] for a in (z, t, y, kappa) if a is not None]
            own = self.cfg_kappa if kappa is None else expand_like(given[-1], z)
            guided[without:] += own * v(*given)
        acts = self.acts(t)
        return guided if acts is None else torch.where(expand_like(acts, z), guided, v_cond)

    def _takes_own(self, kappa: Scalars | None) -> bool:
        """Whether the network's own velocity at labels has any weight."""
        return kappa is not None or self.cfg_kappa > 0

    def acts(self, t: Time) -> Tensor | None:
        """Whether a time is one of guidance, or None if all are."""
        if (self.t_min, self.t_max) == (0, 1):
            return None
        return (self.t_min <= t) & (t <= self.t_max)

    def __call__(
        self,
        v: LabelledVelocity,
        v_hat: LabelledVelocity,
        z: Sample,
        t: Time,
        v_cond: Sample,
        labels: Labels,
        beta: Beta,
        without: int = 0,
    ) -> Guided:
        """What takes the place of v_cond, and the beta that is left to mix the tangent with.

        ``v`` is the trained network's boundary velocity and ``v_hat`` the proxy. The first
        ``without`` samples, which must have r = t, are left without the former at labels: it is
        what the loss evaluates there anyway, and adds.
        """
        y, dropped, kappa = labels
        guided = self.velocity(v, z, t, v_cond, y, kappa, without)
        own = self._own(t, labels, without) if without and self._takes_own(kappa) else None
        if self.mixing == "parameters":
            averaged = partial(self.velocity, v_hat, v_cond=v_cond, y=y, kappa=kappa)
            guided = mix_tangent(guided, z, t, beta, averaged)
            own = None if own is None else (1 - beta) * own
            beta = 0.0
        return Guided(torch.where(expand_like(dropped, z), v_cond, guided), beta, own)

    def _own(self, t: Time, labels: Labels, without: int) -> Scalars:
        """The weights of what the first ``without`` samples lack."""
        fixed, acts = t.new_full((len(t),), self.cfg_kappa), self.acts(t)
        own = (fixed if labels.kappa is None else labels.kappa).masked_fill(labels.dropped, 0)
        own[without:] = 0
        return own if acts is None else own.where(acts, 0)


def with_labels(
    function: Callable[..., Sample], y: Label, kappa: Scalars | None = None
) -> Callable[..., Sample]:
    """A function of z and times with labels added: those of the samples that a batch ends with.

    Losses evaluate a batch whole, or without its first samples, which have r = t; so the labels of
    ``len(z)`` samples are the last ones. Their 1 - 1 / scale, if they have one, follows them.
    """
    known = [y] if kappa is None else [y, kappa]

    def labelled(z: Sample, *times: Time) -> Sample:
        return function(z, *times, *(a[len(a) - len(z) :] for a in known))

    return labelled


def with_told(function: Callable[..., Sample], told: Tensor, times: int) -> Callable[..., Sample]:
    """A function of z, ``times`` times and perhaps labels and their kappa, with ``told`` added.

    As with labels, those of the samples that a batch ends with.
    """

    def informed(z: Sample, *given: Time) -> Sample:
        unknown = [None] * (times + 2 - len(given))
        return function(z, *given, *unknown, told[len(told) - len(z) :])

    return informed


def drop_labels(y: Label, classes: int, dropout: float, generator: torch.Generator) -> Labels:
    """Replaces labels by ``classes``, independently with probability ``dropout``."""
    uniform = torch.rand(len(y), generator=generator, device=y.device)
    dropped = uniform < dropout
    return Labels(y.masked_fill(dropped, classes), dropped)
