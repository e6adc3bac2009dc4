"""Rectified couplings: pairs of a sample and the noise from which a network's ODE made it.

On such pairs (x, e) the conditional velocity e - x varies less given z and t than on independent
ones, and the paths are straighter (rectified flow, arXiv 2209.03003; Re-MeanFlow, 2511.23342).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from vamf import commands, serialization
from vamf.data.dataset import WHOLE, Split, check_labels, require_positive, to_device
from vamf.data.digits import Digits
from vamf.data.image_folder import ImageFolder
from vamf.data.latents import Latents
from vamf.data.mixtures import Mixture
from vamf.data.shards import ShardIndex, Shards
from vamf.data.shuffle import Order
from vamf.data.source import DataSource, LatentSource, is_points
from vamf.data.streaming import Ahead
from vamf.data.torchvision_sets import CIFAR10, MNIST
from vamf.data.toys import Toy
from vamf.files import expanded
from vamf.flow.objectives.terms import ObjectiveRule
from vamf.typing import Label, Sample, Velocity

THREADS = 4
"""Parts of a batch that are read at once."""

Original = Toy | Mixture | Digits | MNIST | CIFAR10 | ImageFolder | Latents | DataSource
"""The data of the run whose ODE made the pairs."""


@dataclass(frozen=True, kw_only=True)
class CouplingsIndex(ShardIndex):
    """The description of a folder of couplings: what made them, and their files."""

    FILE: ClassVar[str] = "couplings.json"
    ARRAYS: ClassVar[str] = "pairs"
    WHAT: ClassVar[str] = "couplings"
    MAKER: ClassVar[str] = "couple"
    REMEDY: ClassVar[str] = (
        f"`{commands.shown('couple')}` of the same run, into the same folder, makes it anew"
    )
    FREE: ClassVar[tuple[str, ...]] = ("run",)  # compared by its weights

    run: str
    """The checkpoint or exported file whose moving average is the velocity."""
    step: int
    """The training step of the checkpoint."""
    weights: str
    """A checksum of the moving average."""
    steps: int
    """Steps of Heun's rule from t = 1 to t = 0, the last of them Euler's."""
    seed: int
    """Seed of noise and labels: those of a pair are a function of the seed and its number."""
    guidance_scale: float
    """The guidance scale that the network was told; 1 if it takes none."""
    source: Original
    """The data that the run was trained on."""
    shape: tuple[int, ...]
    """The shape of a sample."""
    classes: int
    """Number of classes, or 0 for pairs without labels."""
    count: int
    """Number of pairs."""
    shard: int
    """Pairs in a shard; the last shard may have fewer."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored numbers."""

    @property
    def views(self) -> int:
        """1: a pair is read and checked as a whole."""
        return 1

    @property
    def of_view(self) -> tuple[int, ...]:
        """The shape of a pair: the sample, then its noise."""
        return (2, *self.shape)


@dataclass(frozen=True, kw_only=True)
class Couplings:
    """Pairs of data and noise that a flow made, as `jobs.couple` writes them.

    Each sample is trained with its own noise. Generated samples are compared with the data that
    the flow was trained on, `source`. Creating one without `source` or `labelled` takes them from
    the folder's index.
    """

    has_exact_velocity: ClassVar[bool] = False
    """The marginal velocity of pairs is not that of their data with independent noise."""

    root: Path = Path("data/couplings")
    """Folder of the pairs."""
    source: Original | None = None
    """The data that the flow was trained on; by default what the folder says."""
    labelled: bool | None = None
    """Whether the pairs have labels, as of a flow with classes; by default what the folder says."""
    keep: float = 1.0
    """Share of the pairs that is used, in (0, 1]: those with the smallest |e - x|. Re-MeanFlow
    leaves out those that are far apart."""
    held_out: float = 0.05
    """Share of them that is evaluated and not trained on, in (0, 1): the last, at least one."""

    def __post_init__(self) -> None:
        """Raises ValueError for shares out of range, or without a folder that says the rest."""
        if not (0 < self.keep <= 1 and 0 < self.held_out < 1):
            raise ValueError(
                "couplings need keep in (0, 1] and held_out in (0, 1); "
                f"got {self.keep} and {self.held_out}"
            )
        if self.source is None or self.labelled is None:
            index = CouplingsIndex.load(expanded(self.root))
            found = {"source": index.source, "labelled": index.classes > 0}
            for name, value in found.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)

    @property
    def original(self) -> DataSource:
        """The data that the flow was trained on."""
        assert self.source is not None
        return self.source

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, that of the original data."""
        return self.original.shape

    @property
    def classes(self) -> int:
        """The number of classes of the original data, or 0 for pairs without labels."""
        return self.original.classes if self.labelled else 0

    def velocity(self) -> Velocity:
        """Raises ValueError: the exact velocity of couplings is not known."""
        raise ValueError(f"couplings have no closed-form velocity; got {self.root}")

    def load(self, split: Split) -> "CoupledSet":
        """The pairs of one split.

        Raises ValueError if they are missing, damaged, fewer than two, or differ from this
        description.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
        return _load(self)[split]

    def located(self) -> Self:
        """The same with the absolute path of a decoder, if the original data are latents."""
        source = self.original
        return replace(self, source=source.located()) if isinstance(source, LatentSource) else self

    def require_fits(self, loss: ObjectiveRule, proxy: str, augmented: bool, guided: bool) -> None:
        """Raises ValueError for choices that need independent noise, or labels that lack."""
        if not loss.learns_velocity:
            raise ValueError(
                f"a DDPM needs independent noise, and couplings have their own; got {self.root}"
            )
        if proxy == "batch":
            raise ValueError(
                "the proxy batch is a velocity of independent noise, and couplings have their own: "
                "use ema, online, head or reference; got batch"
            )
        if augmented:
            raise ValueError(
                "couplings cannot be augmented, as a sample's noise is not that of its "
                f"transformation: use augment null and model.augmentations 0; got {self.root}"
            )
        if guided and not self.classes:
            raise ValueError(
                "guidance needs labels, and pairs have them if their flow had classes; "
                f"got none in {self.root}"
            )


def original(data: DataSource) -> DataSource:
    """The data that generated samples are compared with: of couplings, what their flow learnt."""
    return data.original if isinstance(data, Couplings) else data


@cache
def _load(data: Couplings) -> dict[Split, "CoupledSet"]:
    index = CouplingsIndex.load(data.root)
    declared = {"shape": (data.shape, index.shape), "classes": (data.classes, index.classes)}
    for name, (wanted, found) in declared.items():
        if wanted != found:
            raise ValueError(f"couplings must have the {name} {wanted}; got {found} in {data.root}")
    if not _same(data.original, index.source):
        raise ValueError(
            f"couplings must be of the data {data.original}; got {index.source} in {data.root}"
        )
    shards = Shards(data.root, index)
    check_labels(shards.labels, max(index.classes, 1), data.root)
    kept = _nearest(shards, data.keep)
    held_out = max(1, round(data.held_out * len(kept)))
    if held_out >= len(kept):
        raise ValueError(
            "couplings need a pair to train on besides those held out; "
            f"got {len(kept)} pairs, {held_out} of them held out, in {data.root}"
        )
    parts: tuple[Split, Split] = ("train", "test")
    places = (kept[:-held_out], kept[-held_out:])
    return {s: CoupledSet(shards, p) for s, p in zip(parts, places, strict=True)}


def _same(declared: DataSource, found: DataSource) -> bool:
    """Whether two choices are of the same data; files may lie elsewhere than they were."""
    return type(declared) is type(found) and (declared == found or not is_points(declared))


def _nearest(shards: Shards[CouplingsIndex], share: float) -> np.ndarray:
    """The numbers, ascending, of the share of the pairs with the smallest |e - x|; at least one."""
    numbers = np.arange(shards.index.count)
    if share == 1:
        return numbers
    parts = [numbers[part.start : part.stop] for part in map(shards.index.of, shards.index.shards)]
    pairs = (shards.read(part, np.zeros_like(part)) for part in parts)
    apart = torch.cat([(e - x).flatten(1).norm(dim=1) for x, e in (p.unbind(1) for p in pairs)])
    nearest = apart.argsort(stable=True)[: max(1, round(share * len(numbers)))]
    return np.sort(nearest.numpy())


class CoupledSet:
    """Pairs that are read from disk before the steps need them, in the order of ``ImageSet``."""

    def __init__(self, shards: Shards[CouplingsIndex], places: np.ndarray) -> None:
        """``places`` are the numbers of this set's pairs."""
        self.shards, self.places = shards, places
        self.labels = shards.labels[torch.from_numpy(places)]
        self._order = Order(len(places))
        self._ahead = Ahead(self._order.positions, self._read, THREADS)
        self._last: tuple[tuple[object, ...], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.shards.index.shape

    def _read(self, positions: Sequence[int]) -> Tensor:
        places = self.places[np.asarray(positions)]
        return self.shards.read(places, np.zeros_like(places)).float()

    def _pairs(self, step: int, size: int, seed: int, part: slice) -> Tensor:
        """The pairs of a batch, (size, 2, *shape); ``batch`` and ``noise_of`` ask for the same."""
        key = (step, size, seed, part.start, part.stop, part.step)
        if self._last is None or self._last[0] != key:
            self._last = key, self._ahead.batch(step, size, seed, part)
        return self._last[1]

    def batch(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Sample:
        """The samples of this step, (size, *shape), on ``device``."""
        return to_device(self._pairs(step, size, seed, part)[:, 0].contiguous(), device)

    def noise_of(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Sample:
        """The noise of each sample of ``batch`` with the same arguments."""
        return to_device(self._pairs(step, size, seed, part)[:, 1].contiguous(), device)

    def labels_of(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Label:
        """The labels of ``batch`` with the same arguments; all 0 without classes."""
        return to_device(self.labels[self._order.positions(step, size, seed)[part]], device)

    def draw_pairs(self, n: int, generator: torch.Generator) -> tuple[Sample, Sample]:
        """n independent draws of a sample and its noise, with repetitions; on the CPU."""
        require_positive("n", n)
        chosen = torch.randint(len(self), (n,), generator=generator, device=generator.device)
        x, e = self._ahead.read(chosen.tolist()).unbind(1)
        return x.contiguous(), e.contiguous()

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """The samples of ``draw_pairs``."""
        return self.draw_pairs(n, generator)[0]

    def fingerprint(self) -> str:
        """BLAKE2 of the index, of the labels and checksums, and of which pairs are of this set."""
        about = json.dumps(serialization.to_dict(self.shards.index)).encode()
        rows = self.shards.rows.tobytes() + self.places.tobytes()
        return hashlib.blake2b(about + rows, digest_size=16).hexdigest()

    def waiting_share(self) -> float:
        """The share of the time since the last call that was spent waiting for files."""
        return self._ahead.waiting_share()
