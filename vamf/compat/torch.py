"""Operations of torch that have no public name."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree

T = TypeVar("T")


def lerp_all_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Moves each tensor in place by ``weight`` of the way to its end, in one kernel on a GPU.

    ``torch._foreach_lerp_`` is private; without it ensembles of networks cannot be trained.
    """
    torch._foreach_lerp_(list(tensors), list(ends), weight)


def group_norm_moments(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Group normalisation of contiguous x (n, c, ...), and mean and inverse deviation, (n, groups).

    ``torch.ops.aten.native_group_norm`` is undocumented; without it networks have no forward mode.
    """
    sizes = (*x.shape[:2], x[0, 0].numel(), groups)
    return torch.ops.aten.native_group_norm(x, weight, bias, *sizes, eps)


def group_norm_gradient(
    gradient: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, groups: int
) -> Tensor:
    """The gradient with respect to contiguous x of ``group_norm_moments`` with weight 1.

    ``torch.ops.aten.native_group_norm_backward`` is undocumented; without it networks have no
    forward mode.
    """
    sizes = (*x.shape[:2], x[0, 0].numel(), groups)
    wanted = [True, False, False]  # of x, weight and bias
    return torch.ops.aten.native_group_norm_backward(
        gradient, x, mean, inverse, None, *sizes, wanted
    )[0]


def silu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """``gradient`` times the derivative of silu at x, in one kernel.

    ``torch.ops.aten.silu_backward`` is undocumented; without it networks have no forward mode.
    """
    return torch.ops.aten.silu_backward(gradient, x)


def copy_all_(to: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copies each tensor into another one, in few kernels on a GPU.

    ``torch._foreach_copy_`` is private; a loop over ``copy_`` is the same, a launch for each.
    """
    torch._foreach_copy_(list(to), list(tensors))


def add_all_(to: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Adds each tensor to another one, in few kernels on a GPU.

    ``torch._foreach_add_`` is private; a loop over ``add_`` is the same, a launch for each.
    """
    torch._foreach_add_(list(to), list(tensors))


def cudnn_convolution_into(out: Tensor, x: Tensor, conv: nn.Conv2d) -> None:
    """Writes a convolution without its bias into ``out``, by cuDNN on a GPU.

    ``torch.ops.aten.cudnn_convolution`` is undocumented; without it a convolution needs a copy.
    """
    cudnn = torch.backends.cudnn
    how = (conv.padding, conv.stride, conv.dilation, conv.groups)
    flags = (cudnn.benchmark, cudnn.deterministic, True)
    torch.ops.aten.cudnn_convolution.out(x, conv.weight, *how, *flags, out=out)


def allow_recompilations(at_least: int) -> None:
    """Raises how often a function may be compiled for other shapes, before it runs uncompiled.

    ``torch.compiler.config`` is documented, but its names change between versions.
    """
    import torch.compiler.config as limits

    limits.recompile_limit = max(limits.recompile_limit, at_least)


def load_jvp_rules() -> None:
    """Imports the rules of forward mode, and suppresses the FutureWarning of their import.

    ``torch._decomp.decompositions_for_jvp`` is private; without it the first jvp prints a warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401


def leaves(tree: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dictionaries, in order.

    ``torch.utils._pytree`` is private, here and in the next two functions.
    """
    return _pytree.tree_leaves(tree)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves with their paths, such as ``['net']['weight']``."""
    return [(_pytree.keystr(path), leaf) for path, leaf in _pytree.tree_flatten_with_path(tree)[0]]


def map_tensors(function: Callable[[Tensor], Tensor], tree: T) -> T:
    """The same tree with a function applied to its tensors."""
    return _pytree.tree_map_only(Tensor, function, tree)
