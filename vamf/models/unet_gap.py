"""Makes the U-Net independent of t - r without changing what it computes at r = t."""

import torch
from torch import Tensor
from torch.nn.functional import silu

from vamf.models.layers import SCALES, sinusoid

TIMES = 64
"""Times at which an embedding is sampled; it is smooth, so its samples span all its values."""

Weights = dict[str, Tensor]


def without_gap(weights: Weights) -> float:
    """Makes u(z, r, t) the network's u(z, t, t) for every r.

    Returns the share (in the Frobenius norm) of what labels and augmentations add that is lost; 0
    if none is.

    The first layer takes W_t s(t) + W_g s(t - r), with sinusoids s, and W_g s(0) becomes a part of
    its bias. If nothing else were added before the layer, W_g would become 0. But embeddings of
    labels, of the guidance scale and of augmentations are, and their part in the second half, the
    rows K, goes through W_g, too. So it is turned. Let B be an orthonormal basis of K, and Q, of as
    many vectors, the nearest to B that is orthogonal to all s(t - r). Then K becomes K B Q^T, and
    W_g becomes W_g B Q^T, which maps s(t - r) to 0, and the new K to what W_g made of the old one.

    The sinusoids are nearly dependent, as t - r and their frequencies are at most 1: they span
    about 7 dimensions in float32, of 256 for the network of CIFAR-10. If the others are too few for
    K, its smallest parts are lost.
    """
    like = weights["map0.weight"]
    weight, half, eps = like.double(), like.shape[1] // 2, torch.finfo(like.dtype).eps
    gap, known = weight[:, half:], _known(weights, half)
    sines = sinusoid(torch.linspace(0, 1, TIMES, dtype=torch.float64), half, endpoint=True)
    free = _complement(sines, eps)
    wanted = _basis(known, eps)[:, : free.shape[1]]
    u, _, v = torch.linalg.svd(free.T @ wanted, full_matrices=False)
    turn = free @ u @ v @ wanted.T
    _turn(weights, half, turn)
    weights["map0.weight"] = torch.cat([weight[:, :half], gap @ turn.T], 1).to(like)
    weights["map0.bias"] = (weights["map0.bias"].double() + gap @ sines[0]).to(like)
    lost = float((known - known @ wanted @ wanted.T).norm() / known.norm()) if known.any() else 0.0
    return lost if lost > 1e-6 else 0.0


def _basis(rows: Tensor, eps: float) -> Tensor:
    """An orthonormal basis of the rows, (dim, rank), the largest parts first."""
    _, sizes, v = torch.linalg.svd(rows, full_matrices=False)
    return v[sizes > eps * sizes[:1].sum()].T


def _complement(rows: Tensor, eps: float) -> Tensor:
    """An orthonormal basis of what is orthogonal to all rows, (dim, dim - rank)."""
    _, sizes, v = torch.linalg.svd(rows, full_matrices=True)
    return v[int((sizes > eps * sizes[0]).sum()) :].T


def _known(weights: Weights, half: int) -> Tensor:
    """What is added to the embedding of t - r, (rows, half): labels, scales, augmentations."""
    rows = [torch.empty(0, half, dtype=torch.float64)]
    if "labels.table.weight" in weights:
        rows.append(weights["labels.table.weight"][:, half:].double())
    if "labels.scale.0.weight" in weights:
        first, last = (
            [weights[f"labels.scale.{i}.{part}"].double() for part in ("weight", "bias")]
            for i in (0, 2)
        )
        kappas = sinusoid(torch.linspace(0, 1, TIMES, dtype=torch.float64), SCALES)
        hidden = silu(kappas @ first[0].T + first[1])
        rows.append((hidden @ last[0].T + last[1])[:, half:])
    if "augment.weight" in weights:
        rows.append(weights["augment.weight"][half:].double().T)
    return torch.cat(rows)


def _turn(weights: Weights, half: int, turn: Tensor) -> None:
    """Applies ``turn`` (half, half) to all that is added to the embedding of t - r."""
    for name in ("labels.scale.2.weight", "labels.scale.2.bias", "augment.weight"):
        if name in weights:
            value = weights[name].double()
            turned = torch.cat([value[:half], turn @ value[half:]])
            weights[name] = turned.to(weights[name])
    if (name := "labels.table.weight") in weights:
        value = weights[name].double()
        weights[name] = torch.cat([value[:, :half], value[:, half:] @ turn.T], 1).to(weights[name])
