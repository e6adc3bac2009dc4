"""Layers that support forward-mode differentiation, by ``torch.func.jvp`` or as duals.

torch's fused attention kernels have no forward mode, so attention uses plain operations.
"""

import math
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vamf.compat.torch import group_norm_gradient, group_norm_moments, silu_gradient
from vamf.dropout import mask_of
from vamf.flow.derivatives import affine, by_formula
from vamf.flow.duals import value_of
from vamf.models.fast import reference_ops
from vamf.typing import Label, Scalars, Time

SCALES = 64
"""Size of the sinusoidal embedding of a guidance scale, and of a time of its interval."""

_Affine = TypeVar("_Affine", nn.Linear, nn.Conv2d)


def sinusoid(t: Time, dim: int, *, endpoint: bool = False) -> Tensor:
    """[sin, cos] of t at dim / 2 frequencies falling from 1 to 1 / 10000, (batch, dim).

    ``endpoint`` includes the last frequency, as in Song et al. (arXiv 2011.13456). Computed in
    the precision of ``t``.
    """
    half = dim // 2
    exponents = torch.arange(half, device=t.device, dtype=t.dtype) / (half - endpoint)
    frequencies = torch.pow(1e-4, exponents)

    def apply(t: Time) -> Tensor:
        return t[:, None] * frequencies

    phase = affine(t, None, apply, apply)
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class Linear(nn.Linear):
    """torch's layer with a cheaper forward mode."""

    def forward(self, x: Any) -> Any:
        """Takes a tensor or a dual, and returns the same kind."""
        return affine(x, self.weight, super().forward, partial(F.linear, weight=self.weight))


class Conv2d(nn.Conv2d):
    """torch's layer with a cheaper forward mode."""

    def forward(self, x: Any) -> Any:
        """Takes a tensor or a dual, and returns the same kind."""
        return affine(x, self.weight, super().forward, self._without_bias)

    def _without_bias(self, x: Tensor) -> Tensor:
        where = self.stride, self.padding, self.dilation
        return F.conv2d(x, self.weight, None, *where, groups=self.groups)  # type: ignore[arg-type]


class Dropout(nn.Dropout):
    """torch's dropout with masks that evaluations can share (``vamf.dropout``)."""

    def forward(self, x: Any) -> Any:
        """Takes a tensor or a dual, and returns the same kind."""
        kept = mask_of(self, value_of(x), self.p)
        if kept is None:
            return x
        apply = partial(self._apply_mask, kept)
        return affine(x, None, apply, apply)

    def _apply_mask(self, kept: Tensor, x: Tensor) -> Tensor:
        return x * kept[len(kept) - len(x) :] / (1 - self.p)


class GroupNorm(nn.Module):
    """Group normalisation with affine parameters, statistics in at least float32."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        groups = min(32, channels // 4)
        self.groups, self.eps = math.gcd(groups, channels), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # tangents are computed without a graph
            return self._normalise(x)
        return by_formula(x, self.parameters(), self._normalise, self._both)

    def _normalise(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # torch 2.11's forward mode needs it; kernels on a GPU copy anyway
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)

    def _both(self, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """Value and tangent with two kernels: without the weight, the Jacobian is symmetric."""
        x, dx = x.contiguous(), dx.contiguous()  # required by the kernels on a GPU
        y, mean, inverse = group_norm_moments(x, self.weight, self.bias, self.groups, self.eps)
        dn = group_norm_gradient(dx, x, mean, inverse, self.groups)
        return y, dn * self.weight[:, None, None]


def scaled(x: Tensor, factor: float) -> Tensor:
    """x times ``factor``; slow in torch's forward mode, which creates a tangent of the number."""
    apply = partial(torch.mul, other=factor)
    return affine(x, None, apply, apply)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return by_formula(x, (), F.silu, _silu_both)


def _silu_both(x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    return F.silu(x), silu_gradient(dx, x)


def _resampled(x: Tensor, up: bool) -> Tensor:
    apply = partial(reference_ops.fir, gain=1.0, up=up)
    return affine(x, None, apply, apply)


def downsample(x: Tensor) -> Tensor:
    """Halves height and width (both even) with the FIR filter [1, 3, 3, 1], zero-padded."""
    return _resampled(x, up=False)


def upsample(x: Tensor) -> Tensor:
    """Doubles height and width with the FIR filter [1, 3, 3, 1], zero-padded."""
    return _resampled(x, up=True)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v in plain operations, all (batch, heads, tokens, d).

    The softmax is computed in at least float32.
    """
    logits = torch.einsum("bhqc,bhkc->bhqk", q, scaled(k, 1 / math.sqrt(q.shape[-1])))
    weights = logits.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).to(q.dtype)
    return torch.einsum("bhqk,bhkc->bhqc", weights, v)


class SelfAttention(nn.Module):
    """Residual self-attention over pixels."""

    def __init__(self, channels: int, heads: int, out_gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(channels)
        self.qkv = initialise(Conv2d(channels, 3 * channels, 1), gain=math.sqrt(0.2))
        self.proj = initialise(Conv2d(channels, channels, 1), gain=out_gain)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self._mixed(self.qkv(self.norm(x))))

    def _mixed(self, qkv: Tensor) -> Tensor:
        b, c, h, w = qkv.shape
        q, k, v = qkv.reshape(b, 3, self.heads, c // 3 // self.heads, -1).unbind(1)
        pixels = attend(*(part.transpose(2, 3) for part in (q, k, v)))
        return pixels.transpose(2, 3).reshape(b, c // 3, h, w)


class ClassEmbedding(nn.Module):
    """A learnt vector for each class, and one for no class (arXiv 2207.12598).

    If ``guided``, two layers over the sinusoid of kappa = 1 - 1 / scale add an embedding of the
    guidance scale; with ``interval``, so do two of its first and two of its last time (arXiv
    2512.02012, whose network has these embeddings as tokens).
    """

    def __init__(
        self, classes: int, dim: int, guided: bool = False, interval: bool = False
    ) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, dim)
        scale = _of_number(dim)  # drawn in any case: what is drawn after it does not depend on it
        self.scale = scale if guided else None
        self.t_min, self.t_max = (_of_number(dim) if interval else None for _ in range(2))

    def forward(
        self,
        y: Label | None,
        size: int,
        kappa: Scalars | None = None,
        interval: Tensor | None = None,
    ) -> Tensor:
        """(size, dim) for class indices (size,); index ``classes``, or None, is no class.

        ``kappa`` is (size,) in [0, 1); None is 0, a scale of 1. ``interval`` is (size, 2), times in
        [0, 1]; None is [0, 1]. Raises ValueError if one is given that the embedding does not take.
        """
        found = self.table.weight[-1:].expand(size, -1) if y is None else self.table(y)
        if interval is not None and self.t_min is None:
            raise ValueError(
                "this network takes no interval of guidance; its config has no guided_interval"
            )
        if self.scale is None:
            if kappa is not None:
                raise ValueError("this network takes no guidance scale; its config is not guided")
            return found
        kappa = torch.zeros(size, device=found.device) if kappa is None else kappa
        found = found + self.scale(sinusoid(kappa, SCALES).to(found.dtype))
        if self.t_min is None or self.t_max is None:
            return found
        if interval is None:
            wide = torch.promote_types(found.dtype, torch.float32)
            first = torch.zeros(size, device=found.device, dtype=wide)
            last = torch.ones_like(first)
        else:
            first, last = interval.unbind(1)
        found = found + self.t_min(sinusoid(first, SCALES).to(found.dtype))
        return found + self.t_max(sinusoid(last, SCALES).to(found.dtype))


def _of_number(dim: int) -> nn.Sequential:
    """Two layers from a number's sinusoid to its embedding."""
    return nn.Sequential(initialise(Linear(SCALES, dim)), nn.SiLU(), initialise(Linear(dim, dim)))


def check_classes(classes: int, guided: bool, guided_interval: bool = False) -> None:
    """Raises ValueError for inputs of guidance that a network cannot have."""
    if classes < 0:
        raise ValueError(f"classes must be at least 0; got {classes}")
    if guided and not classes:
        raise ValueError("a network that takes the guidance scale needs classes; got 0")
    if guided_interval and not guided:
        raise ValueError(
            "a network that takes the interval of guidance needs its scale: model.guided must be "
            f"true; got {guided}"
        )


def refuse_labels(y: Label | None) -> None:
    """Raises ValueError if a network without classes receives labels."""
    if y is not None:
        raise ValueError("this network takes no labels; its config has classes = 0")


def with_rows(saved: Tensor, like: Tensor) -> Tensor:
    """A saved tensor with rows of zeros appended, up to the number of rows of ``like``."""
    missing = max(len(like) - len(saved), 0) if saved.ndim else 0
    return torch.cat([saved, saved.new_zeros(missing, *saved.shape[1:])]) if missing else saved


def initialise(module: _Affine, gain: float = 1.0, *, per_patch: bool = False) -> _Affine:
    """Sets Glorot-uniform weights times ``gain`` and zero biases; returns the module.

    With ``per_patch``, a convolution of patches that do not overlap is initialised like a linear
    layer: its fan-out is the number of its channels, not multiplied by the pixels of a patch.
    """
    with torch.no_grad():
        weight = module.weight.flatten(1) if per_patch else module.weight
        nn.init.xavier_uniform_(weight).mul_(gain)
        if module.bias is not None:
            module.bias.zero_()
    return module
