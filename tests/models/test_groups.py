"""Groups of operations that are compiled where duals are carried on a GPU."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo import config as compiling

from vamf.models import fused


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[fused.Group]:
    """Multiplies by a number; compiled as on a GPU, but for the kernels."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    def scale(x, k):
        return k * x

    with compiling.patch(recompile_limit=8):
        yield fused.Group(scale, lambda _, tangents: tangents[0])


def computed(group: fused.Group, programs: int) -> None:
    for k in range(programs):
        x = torch.ones(2 + k, requires_grad=k % 2 == 0)
        with torch.set_grad_enabled(k % 3 == 0):
            assert group._compiled[0](x, k).tolist() == [k] * len(x)


def test_one_process_trains_experiments_of_many_shapes(group):
    """torch's own limit of eight programs ended benchmarks of a guided DiT, with an error."""
    with compiling.patch(fail_on_recompile_limit_hit=True):
        computed(group, 40)


def test_beyond_its_programs_a_group_is_computed_all_the_same(group, monkeypatch):
    monkeypatch.setattr(fused, "PROGRAMS", 4)
    computed(group, 12)
