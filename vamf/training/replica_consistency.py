"""Checks that all workers have the same experiment, code, data and state."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vamf.compat.torch import named_leaves
from vamf.data.dataset import Coupled, Dataset, ImageSet, Labelled
from vamf.distributed import Workers
from vamf.errors import WorkersDiffer
from vamf.experiment import Experiment

PACKAGE = Path(__file__).parents[1]
"""The folder whose code is compared: all of vamf."""

SHOWN = 3
"""Number of differences that the error message lists."""

Facts = Mapping[str, Any]
"""Values that must be the same on all workers, by name; each is a JSON value."""


def agree(workers: Workers, facts: Facts) -> None:
    """Raises WorkersDiffer, with ranks and names, on every worker unless all facts are the same."""
    if workers.world == 1:
        return
    reported = [json.loads(text) for text in workers.gather(json.dumps(facts))]
    wrong = differences(reported)
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise WorkersDiffer(f"the workers differ: {'; '.join(wrong[:SHOWN])}{more}")


def differences(reported: list[Facts]) -> list[str]:
    """For each fact, the ranks whose value differs from that of most ranks (or of rank 0)."""
    found = []
    for name in sorted(set().union(*reported)):
        values = [json.dumps(facts.get(name)) for facts in reported]
        usual = Counter(values).most_common(1)[0][0]
        for rank, value in enumerate(values):
            if value != usual:
                found.append(f"rank {rank} has {name} {value}, rank {values.index(usual)} {usual}")
    return found


def setting(experiment: Experiment, dataset: Dataset) -> Facts:
    """The experiment's settings, a digest of each source file, torch's version, and the data."""
    return {
        **{f"setting {name}": value for name, value in experiment.flatten().items()},
        **{f"code {name}": digest for name, digest in code(PACKAGE).items()},
        "torch": torch.__version__,
        "data": fingerprint(dataset, experiment),
    }


@cache
def code(package: Path) -> dict[str, str]:
    """A digest of each source file of a package."""
    files = sorted(package.rglob("*.py"))
    return {str(f.relative_to(package)): _digest(f.read_bytes()) for f in files}


def fingerprint(dataset: Dataset, experiment: Experiment) -> str:
    """A digest of all images and labels, or of couplings; else of the first and last batch."""
    if isinstance(dataset, ImageSet):
        return _digest(_bytes(dataset.images), _bytes(dataset.labels))
    if isinstance(dataset, Coupled) and isinstance(dataset, Labelled):
        return dataset.fingerprint()
    size, seed, cpu = experiment.batch, experiment.seed, torch.device("cpu")
    steps = (0, experiment.steps - 1)
    return _digest(*(_bytes(dataset.batch(step, size, seed, cpu)) for step in steps))


def state(parts: Mapping[str, Any]) -> Facts:
    """A digest of each part of a trainer's state: network, moving average, optimiser, ..."""
    return {f"state {name}": _digest(*_leaves(part)) for name, part in parts.items()}


def _leaves(part: Any) -> list[bytes]:
    """All values in nested dictionaries and lists as bytes, each preceded by its path."""
    found: list[bytes] = []
    for name, leaf in named_leaves(part):
        found.append(name.encode())
        found.append(_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())
    return found


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _digest(*parts: Any) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]
