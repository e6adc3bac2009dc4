"""Classifier-free guidance inside the training target (arXiv 2505.13447, section 4.2).

Sampling then needs one evaluation for each step. A conditional network is u(z, r, t, y); u(z, r, t)
is its velocity without a class.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vamf.flow.tangents import mix_tangent
from vamf.typing import Beta, Label, Sample, Scalars, Time, expand_like

HALF = 0.5
"""The latest time at which a drawn interval begins, and the earliest at which it ends."""
LabelledVelocity = Callable[..., Sample]
"""v(z, t, y), or v(z, t, y, kappa) of a network that takes kappa; v(z, t) without a class."""


class Guided(NamedTuple):
    """The guided velocity, the remaining beta, and the weight of a term that the loss adds."""

    velocity: Sample | None
    """v_g, used in place of v_cond; without its last term where ``cond_weight`` is not 0."""
    beta: Beta
    """The weight of the proxy in the tangent: 0 if v_g already contains it."""
    cond_weight: Scalars | None = None
    """(batch,): the weight of sg[u(z, t, t, y)], which the loss adds to ``velocity``."""


class Labels(NamedTuple):
    """The labels of a batch, some of them dropped."""

    y: Label
    """Class indices; the number of classes itself where the label was dropped."""
    dropped: Label
    """Booleans: whether the label was dropped."""
    kappa: Scalars | None = None
    """1 - 1 / scale of each sample's guidance scale, 0 where the label was dropped; None if the
    scale is fixed."""
    interval: Tensor | None = None
    """(batch, 2): the first and the last time at which a sample is guided, 0 and 1 where the label
    was dropped or r = t; None if it is fixed."""

    def of(self, mine: slice) -> "Labels":
        """Those of some samples."""
        return Labels(*(None if a is None else a[mine] for a in self))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """v_g = omega v_cond + (1 - omega - cfg_kappa) u(z, t, t) + cfg_kappa u(z, t, t, y).

    Replaces v_cond in target and tangent (arXiv 2505.13447, section 4.2 and appendix). Samples
    whose label was dropped keep v_cond, so that u without a class is the unconditional flow, whose
    variances and landscapes evaluation measures. omega = 1 and cfg_kappa = 0 condition the network
    without guidance.

    ``tangent``: v_g is evaluated by the trained network, and the tangent is (1 - beta) v_g + beta
    v_hat, as without guidance. ``parameters``, as in the code of arXiv 2605.09235 but not its text:
    tangent and target are both (1 - beta) v_g + beta v_g' with v_g' evaluated by the moving
    average, so that v_cond keeps its weight omega at every beta.

    With ``max_scale`` omega is 1 and cfg_kappa is 1 - 1 / scale; a scale is drawn for each sample
    and is an input of the network, as in improved Mean Flows (arXiv 2512.02012; `guidance_fn`,
    `sample_cfg_scale` and `sample_cfg_interval` of github.com/Lyy-iiis/imeanflow). With
    ``random_interval`` so are the times between which a sample is guided: u(z, r, t, y, scale,
    interval) averages a velocity that is guided at some of the times from r to t only. Where r = t
    the interval is [0, 1], and so it is where u(z, t, t, y) is used as a velocity.
    """

    omega: float = 1.0
    """Weight of v_cond, positive; the guidance scale is omega / (1 - cfg_kappa)."""
    cfg_kappa: float = 0.0
    """Weight of the network's own conditional velocity, in [0, 1)."""
    dropout: float = 0.1
    """Probability that a sample's label is dropped, in [0, 1)."""
    t_min: float = 0.0
    """Earliest time of guidance; outside of [t_min, t_max] a sample keeps v_cond."""
    t_max: float = 1.0
    """Latest time of guidance."""
    mixing: Literal["tangent", "parameters"] = "tangent"
    """What beta mixes: the jvp's tangent, or the parameters that evaluate the guidance."""
    max_scale: float | None = None
    """Draw a guidance scale for each sample, from 1 to this, as an input of the network
    (model.guided); evaluation.guidance_scale then chooses it in sampling."""
    scale_power: float = 1.0
    """The density of drawn scales falls as scale ** -scale_power; 1: log-uniform, 0: uniform."""
    random_interval: bool = False
    """Draw [t_min, t_max] for each sample with r < t, uniformly from [0, 0.5] and [0.5, 1], as an
    input of the network (model.guided_interval); needs max_scale. evaluation.guidance_t_min and
    guidance_t_max then choose it in sampling."""

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
        self._check_draws()

    def _check_draws(self) -> None:
        """Raises ValueError if what is drawn for each sample does not go together."""
        if not -float("inf") < self.scale_power < float("inf"):
            raise ValueError(f"guidance.scale_power must be finite; got {self.scale_power}")
        if self.random_interval and (self.t_min, self.t_max) != (0, 1):
            raise ValueError(
                "with guidance.random_interval each sample has its own times: t_min and t_max must "
                f"be 0 and 1; got {self.t_min} and {self.t_max}"
            )
        if self.max_scale is None:
            if self.scale_power != 1 or self.random_interval:
                raise ValueError(
                    "guidance.scale_power and random_interval need guidance.max_scale; "
                    f"got {self.scale_power} and {self.random_interval} without it"
                )
            return
        if not 1 < self.max_scale < float("inf"):
            raise ValueError(f"guidance.max_scale must be finite and over 1; got {self.max_scale}")
        if (self.omega, self.cfg_kappa) != (1, 0):
            raise ValueError(
                "with guidance.max_scale the weights follow from each sample's scale: omega and "
                f"cfg_kappa must be 1 and 0; got {self.omega} and {self.cfg_kappa}"
            )

    @property
    def guides(self) -> bool:
        """Whether v_g differs from v_cond; otherwise the network is conditioned on labels alone."""
        return (self.omega, self.cfg_kappa, self.max_scale) != (1, 0, None)

    def draw_kappa(self, n: int, generator: torch.Generator) -> Scalars | None:
        """1 - 1 / scale of n samples, in [0, 1 - 1 / max_scale]; None if it is fixed.

        By inversion: with b = 1 - scale_power, scale ** b is uniform from 1 to max_scale ** b.
        """
        if self.max_scale is None:
            return None
        uniform = torch.rand(n, generator=generator, device=generator.device)
        if self.scale_power == 1:
            return 1 - self.max_scale**-uniform
        b = 1 - self.scale_power
        log_scale = torch.log1p(uniform * math.expm1(b * math.log(self.max_scale))) / b
        return -torch.expm1(-log_scale)

    def draw_interval(self, whole: Tensor, generator: torch.Generator) -> Tensor | None:
        """The times [t_min, t_max] of samples, (batch, 2), around HALF; None if they are fixed.

        Samples that are ``whole`` (batch,) have [0, 1].
        """
        if not self.random_interval:
            return None
        first, last = torch.rand(2, len(whole), generator=generator, device=generator.device)
        first, last = HALF * first, HALF + HALF * last
        return torch.stack([first.masked_fill(whole, 0), last.masked_fill(whole, 1)], 1)

    def velocity(
        self,
        v: LabelledVelocity,
        z: Sample,
        t: Time,
        v_cond: Sample,
        y: Label,
        kappa: Scalars | None = None,
        n_deferred: int = 0,
        interval: Tensor | None = None,
    ) -> Sample:
        """v_g, with ``v`` the boundary velocity sg[u(z, t, t, y)]; terms of weight 0 are skipped.

        ``kappa``, if given, replaces ``cfg_kappa`` for each sample and is passed to ``v``;
        ``interval`` (batch, 2) replaces t_min and t_max. For the first ``n_deferred`` samples the
        term of the network's own conditional velocity is left out.
        """
        guided = self.omega * v_cond
        if kappa is not None or self.omega + self.cfg_kappa != 1:
            null = 1 - self.omega - (self.cfg_kappa if kappa is None else expand_like(kappa, z))
            guided = guided + null * v(z, t)
        if self._needs_conditional(kappa) and n_deferred < len(z):
            given = [a[n_deferred:] for a in (z, t, y, kappa) if a is not None]
            cond_weight = self.cfg_kappa if kappa is None else expand_like(given[-1], z)
            guided[n_deferred:] += cond_weight * v(*given)
        acts = self.acts(t, interval)
        return guided if acts is None else torch.where(expand_like(acts, z), guided, v_cond)

    def _needs_conditional(self, kappa: Scalars | None) -> bool:
        """Whether the network's own conditional velocity has a weight."""
        return kappa is not None or self.cfg_kappa > 0

    def acts(self, t: Time, interval: Tensor | None = None) -> Tensor | None:
        """Which times lie in [t_min, t_max] or ``interval``, (batch,) booleans; None if all do."""
        if interval is not None:
            return within(t, interval)
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
        n_deferred: int = 0,
    ) -> Guided:
        """The velocity that replaces v_cond, and the beta with which the tangent is still mixed.

        ``v`` is the trained network's boundary velocity and ``v_hat`` the proxy. For the first
        ``n_deferred`` samples, which must have r = t, the term of the conditional ``v`` is left
        out: the loss evaluates the same velocity there, and adds the term.
        """
        y, dropped, kappa, interval = labels
        guided = self.velocity(v, z, t, v_cond, y, kappa, n_deferred, interval)
        cond_weight = (
            self._deferred_weights(t, labels, n_deferred)
            if n_deferred and self._needs_conditional(kappa)
            else None
        )
        if self.mixing == "parameters":
            known = v_cond, y, kappa, 0, interval

            def averaged(z: Sample, t: Time) -> Sample:
                return self.velocity(v_hat, z, t, *known)

            guided = mix_tangent(guided, z, t, beta, averaged)
            cond_weight = None if cond_weight is None else (1 - beta) * cond_weight
            beta = 0.0
        return Guided(torch.where(expand_like(dropped, z), v_cond, guided), beta, cond_weight)

    def _deferred_weights(self, t: Time, labels: Labels, n_deferred: int) -> Scalars:
        """The weights of the terms that the first ``n_deferred`` samples lack; 0 for the others."""
        fixed, acts = t.new_full((len(t),), self.cfg_kappa), self.acts(t, labels.interval)
        cond_weight = (fixed if labels.kappa is None else labels.kappa).masked_fill(
            labels.dropped, 0
        )
        cond_weight[n_deferred:] = 0
        return cond_weight if acts is None else cond_weight.where(acts, 0)


def within(t: Time, interval: Tensor) -> Tensor:
    """Which times lie in their closed intervals (batch, 2), (batch,) booleans."""
    return (interval[:, 0] <= t) & (t <= interval[:, 1])


def with_labels(
    function: Callable[..., Sample],
    y: Label,
    kappa: Scalars | None = None,
    interval: Tensor | None = None,
) -> Callable[..., Sample]:
    """``function`` of z and times, called with the labels of the batch's last ``len(z)`` samples.

    Losses evaluate a batch whole, or without its first samples, which have r = t. ``kappa`` and
    ``interval``, if given, are passed after the labels.
    """
    known = [a for a in (y, kappa, interval) if a is not None]

    def labelled(z: Sample, *times: Time) -> Sample:
        return function(z, *times, *(a[len(a) - len(z) :] for a in known))

    return labelled


def velocity_with_labels(
    v: LabelledVelocity,
    y: Label,
    kappa: Scalars | None = None,
    interval: Tensor | None = None,
) -> Callable[..., Sample]:
    """``v``(z, t) with the labels, as ``with_labels``, and the scale that applies at t.

    With an ``interval`` (batch, 2), kappa is 0 at times outside of it, and ``v`` is not told it: a
    velocity at t depends on guidance at t alone (`guidance_fn` of iMF's code).
    """
    if kappa is None or interval is None:
        return with_labels(v, y, kappa)

    def labelled(z: Sample, t: Time) -> Sample:
        own_y, own_kappa, own = (a[len(a) - len(z) :] for a in (y, kappa, interval))
        return v(z, t, own_y, own_kappa.where(within(t, own), 0))

    return labelled


def with_augment_labels(
    function: Callable[..., Sample], augment_labels: Tensor, times: int
) -> Callable[..., Sample]:
    """``function`` called with the augmentation labels of the batch's last ``len(z)`` samples.

    The returned function takes z, ``times`` times and optionally labels, kappa and an interval.
    """

    def informed(z: Sample, *given: Time) -> Sample:
        unknown = [None] * (times + 3 - len(given))
        return function(z, *given, *unknown, augment_labels[len(augment_labels) - len(z) :])

    return informed


def drop_labels(y: Label, classes: int, dropout: float, generator: torch.Generator) -> Labels:
    """Replaces labels by ``classes``, independently with probability ``dropout``."""
    uniform = torch.rand(len(y), generator=generator, device=y.device)
    dropped = uniform < dropout
    return Labels(y.masked_fill(dropped, classes), dropped)
