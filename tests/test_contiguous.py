"""Tensors side by side are found again, and nothing else is taken for them."""

import torch

from vamf.contiguous import ALIGNED, memory_of, side_by_side

LIKE = [torch.zeros(3), torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)]
LIKE += [torch.zeros(()), torch.zeros(5, 2).T]


def filled(like=LIKE):
    parts = side_by_side(like, torch.float32)
    for k, part in enumerate(parts):
        part.fill_(k + 1)
    return parts


def test_they_have_the_shapes_and_strides_of_others_and_start_where_kernels_want_it():
    for part, like in zip(filled(), LIKE, strict=True):
        assert part.shape == like.shape and part.stride() == like.stride()
        assert part.data_ptr() % ALIGNED == 0


def test_what_is_done_with_the_memory_is_done_with_each():
    parts = filled()
    memory = memory_of(parts)
    memory.mul_(10)
    for k, part in enumerate(parts):
        assert part.unique().tolist() == [10 * (k + 1)]


def test_memory_that_holds_more_or_less_is_not_theirs():
    parts, others = filled(), filled()
    assert memory_of(parts[:-1]) is None
    assert memory_of([*parts[:-1], others[-1]]) is None
    assert memory_of([part.clone() for part in parts]) is None
    assert memory_of([parts[0].view(torch.int32), *parts[1:]]) is None
