"""Groups of operations that are compiled where duals are carried on a GPU."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo import config as compiling

from vamf.flow.duals import Dual, dual_mode
from vamf.models import dit
from vamf.models.fast import fused
from vamf.rng import generator


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


def test_a_value_that_needs_neither_tangent_nor_graph_has_a_way_of_its_own():
    group = fused.Group(lambda x: 2 * x, lambda _, tangents: 2 * tangents[0], lambda x: 3 * x)
    one = torch.ones(1)
    with dual_mode():
        assert group(one).item() == 2
        with torch.no_grad():
            assert group(one).item() == 3
            assert group(Dual(one, one)).value.item() == 2
    with torch.no_grad():
        assert group(one).item() == 2


def test_attention_without_a_graph_is_attention():
    """By torch's kernel; with a graph in plain operations."""
    g = generator("attention")
    qkv = torch.randn(3, 16, 24, generator=g, dtype=torch.float64, requires_grad=True)
    with dual_mode():
        plain = dit._mixed(qkv, 2)
        with torch.no_grad():
            bare = dit._mixed(qkv, 2)
    assert plain.requires_grad and not bare.requires_grad
    torch.testing.assert_close(bare, plain.detach(), rtol=1e-12, atol=1e-12)
