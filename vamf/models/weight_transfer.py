"""Carries the weights of a network over to one with other labels, other heads, or used at r < t.

The new network computes the same u(z, r, t) as the old one without what only one of them has. All
functions change a dictionary of weights by name, and return a line on what they changed; sums are
computed in float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from vamf.models.config import NetworkConfig, takes_interval
from vamf.models.dit import FREQUENCIES, DiTConfig
from vamf.models.layers import SCALES, sinusoid
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.models.unet_gap import without_gap as unet_without_gap

Weights = dict[str, Tensor]

TABLE, SCALE, HEAD, AUGMENT = "labels.table.weight", "labels.scale.", "velocity_head.", "augment."
"""Names, or their beginnings, that all networks share."""

INTERVAL = {"labels.t_min.": 0.0, "labels.t_max.": 1.0}
"""The same of the embeddings of guided times, and the times where guidance has no interval."""

OPTIONAL = ("dropout", "classes", "guided", "guided_interval", "velocity_head", "augmentations")
"""Fields of a configuration in which two networks may differ."""

OWN = "the source was trained at r = t only, and what your network computes at r < t is kept"
"""The note on a network of a user's own."""


@dataclass(frozen=True)
class Places:
    """Where one kind of network takes its inputs and gives its output."""

    output: str
    """The beginning of the names of the output layer."""
    without_gap: Callable[[Weights], float]
    """Makes the network at every r what it is at r = t; returns the share of labels lost."""
    add_constant: Callable[[Weights, Tensor], None]
    """Adds what an embedding that is always the same vector would add, and removes its input."""
    add_labels: Callable[[Weights, Mapping[str, Tensor]], None]
    """Adds an input for labels, as in the weights of a new network; the table is added after it."""


def _plus(weights: Weights, name: str, change: Tensor) -> None:
    weights[name] = (weights[name].double() + change.double()).to(weights[name].dtype)


def _through(weights: Weights, layer: str, x: Tensor) -> Tensor:
    """What a linear layer makes of (n, inputs), in float64."""
    return x.double() @ weights[f"{layer}.weight"].double().T + weights[f"{layer}.bias"].double()


def _nothing(*_: object) -> None:
    pass


def _add_before_map(weights: Weights, constant: Tensor) -> None:
    _plus(weights, "map0.bias", weights["map0.weight"].double() @ constant.double())


def _mlp_without_gap(weights: Weights) -> float:
    """The perceptron takes emb(t) - emb(r), which is 0 at r = t: its weights become 0.

    The columns of the first layer are those of z, of emb(t), of this difference, and of labels.
    """
    first, table = weights["layers.0.weight"].clone(), weights.get(TABLE)
    dim = weights["head.bias"].numel()
    size = (first.shape[1] - dim) // (2 if table is None else 3)
    first[:, dim + size : dim + 2 * size] = 0
    weights["layers.0.weight"] = first
    return 0.0


def _add_to_mlp(weights: Weights, constant: Tensor) -> None:
    first, size = weights["layers.0.weight"], len(constant)
    _plus(weights, "layers.0.bias", first[:, -size:].double() @ constant.double())
    weights["layers.0.weight"] = first[:, :-size]


def _add_label_columns(weights: Weights, fresh: Mapping[str, Tensor]) -> None:
    """Random weights for labels; their table of zeros cancels them at the start."""
    columns = fresh["layers.0.weight"][:, -fresh[TABLE].shape[1] :]
    first = weights["layers.0.weight"]
    weights["layers.0.weight"] = torch.cat([first, columns.to(first)], 1)


def _dit_without_gap(weights: Weights) -> float:
    """The transformer adds an embedding of t - r to that of t: it becomes its value at 0."""
    zero = sinusoid(torch.zeros(1, dtype=torch.float64), FREQUENCIES)
    value = _through(weights, "gap.second", silu(_through(weights, "gap.first", zero)))[0]
    weight, bias = weights["gap.second.weight"], weights["gap.second.bias"]
    weights |= {"gap.second.weight": torch.zeros_like(weight), "gap.second.bias": value.to(bias)}
    return 0.0


def _add_to_condition(weights: Weights, constant: Tensor) -> None:
    _plus(weights, "gap.second.bias", constant)


PLACES: Mapping[type, Places] = {
    UNetConfig: Places("conv_out.", unet_without_gap, _add_before_map, _nothing),
    MLPConfig: Places("head.", _mlp_without_gap, _add_to_mlp, _add_label_columns),
    DiTConfig: Places("out.", _dit_without_gap, _add_to_condition, _nothing),
}


def transferred(
    weights: Mapping[str, Tensor],
    there: NetworkConfig,
    here: NetworkConfig,
    fresh: Mapping[str, Tensor],
    *,
    without_gap: bool,
) -> tuple[Weights, dict[str, str]]:
    """Weights of a network ``there`` as those of one ``here``, and a line on each change, by name.

    ``fresh`` are those of a new network. With ``without_gap``, u(z, r, t) becomes u(z, t, t) of the
    old network for every r: for one that was trained at r = t only. A network of a user's own keeps
    its weights, and its configuration must be the same.
    """
    found, lines, places = dict(weights), dict[str, str](), PLACES.get(type(there))
    if places is None:
        return found, {"r": OWN} if without_gap else {}
    if without_gap:
        lines["r"] = _say_without_gap(places.without_gap(found))
    other = there.classes != here.classes
    if there.guided and (other or not here.guided):
        _remove_numbers(found, {SCALE: 0.0})
        lines["guidance_scale"] = "the source's guidance scale is not used: it is told 1"
    if takes_interval(there) and (other or not takes_interval(here)):
        _remove_numbers(found, INTERVAL)
        lines["guidance_interval"] = "the source's guided times are not used: it is told 0 to 1"
    if there.classes and other:
        places.add_constant(found, found.pop(TABLE)[-1])
        lines["labels"] = f"the source's {there.classes} classes are not used: it is told none"
    if here.classes and other:
        places.add_labels(found, fresh)
        found[TABLE] = torch.zeros_like(fresh[TABLE])
        lines["labels"] = _say_labels(there.classes, here.classes)
    if here.guided and not any(name.startswith(SCALE) for name in found):
        _add_numbers(found, fresh, (SCALE,))
        lines["guidance_scale"] = "the source takes no guidance scale: its embedding starts at 0"
    if takes_interval(here) and not any(name.startswith(tuple(INTERVAL)) for name in found):
        _add_numbers(found, fresh, tuple(INTERVAL))
        lines["guidance_interval"] = "the source takes no guided times: their embeddings start at 0"
    lines |= _change_augment(found, there, here, fresh) | _change_head(found, there, here, places)
    return found, lines


def _say_without_gap(lost: float) -> str:
    rest = f", but for {lost:.1g} of what it adds for labels and augmentations" if lost else ""
    return (
        "the source was trained at r = t only: its embedding of t - r is made constant, so "
        f"this run starts with u(z, r, t) = v(z, t) at every r{rest}"
    )


def _say_labels(there: int, here: int) -> str:
    before = f"the source has {there} classes" if there else "the source has no labels"
    return f"{before}: the embeddings of {here} classes start at 0"


def _remove_numbers(weights: Weights, numbers: Mapping[str, float]) -> None:
    """Adds the embeddings of these numbers, by name, to that of every class."""
    for place, number in numbers.items():
        known = sinusoid(torch.full((1,), number, dtype=torch.float64), SCALES)
        hidden = silu(_through(weights, f"{place}0", known))
        _plus(weights, TABLE, _through(weights, f"{place}2", hidden))
        for name in [name for name in weights if name.startswith(place)]:
            del weights[name]


def _add_numbers(weights: Weights, fresh: Mapping[str, Tensor], places: tuple[str, ...]) -> None:
    """Adds embeddings of numbers, all 0 at the start."""
    last = {f"{place}2.{name}" for place in places for name in ("weight", "bias")}
    for name in [name for name in fresh if name.startswith(places)]:
        weights[name] = torch.zeros_like(fresh[name]) if name in last else fresh[name].clone()


def _change_augment(
    weights: Weights, there: NetworkConfig, here: NetworkConfig, fresh: Mapping[str, Tensor]
) -> dict[str, str]:
    name = f"{AUGMENT}weight"
    before, after = (getattr(config, "augmentations", 0) for config in (there, here))
    if before == after:
        return {}
    weights.pop(name, None)
    if not after:
        return {"augment": "the source's augment labels are not used: it is told none"}
    weights[name] = torch.zeros_like(fresh[name])
    had = f"{before} other augment labels" if before else "no augment labels"
    return {"augment": f"the source takes {had}: the weights of {after} start at 0"}


def _change_head(
    weights: Weights, there: NetworkConfig, here: NetworkConfig, places: Places
) -> dict[str, str]:
    if there.velocity_head == here.velocity_head:
        return {}
    if there.velocity_head:
        for name in [name for name in weights if name.startswith(HEAD)]:
            del weights[name]
        return {"velocity_head": "the source's velocity head is not used"}
    output = {n: value for n, value in weights.items() if n.startswith(places.output)}
    for name, value in output.items():
        weights[HEAD + name.removeprefix(places.output)] = value.clone()
    return {"velocity_head": "the source has no velocity head: it starts as a copy of the output"}
