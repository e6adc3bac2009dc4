"""One contract for all networks: forward mode, gradients, training mode, bfloat16, duals."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vamf.flow.derivatives import (
    directional_derivative,
    terminal_derivative,
    textbook_derivative,
    total_derivative,
)
from vamf.flow.duals import dual_mode
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss, AlphaSchedule
from vamf.flow.objectives.meanflow import Anchor, MeanFlowLoss
from vamf.flow.objectives.semigroup import SemigroupLoss
from vamf.flow.objectives.terminal_velocity import TerminalVelocityLoss
from vamf.flow.objectives.terms import AdaptiveWeight, Draws
from vamf.flow.tangents import boundary_velocity
from vamf.flow.trace import TraceWeight, draw_signs
from vamf.models.dit import DiTConfig, positions
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.rng import generator

SMALL = UNetConfig(channels=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0)

MODELS = {
    "mlp points": (MLPConfig(hidden=(32, 16), embedding=8), (2,)),
    "mlp images": (MLPConfig(hidden=(32,), embedding=6), (1, 8, 8)),
    "unet 1 level": (SMALL, (1, 8, 8)),
    "unet 2 levels": (replace(SMALL, multipliers=(1, 2), attention=(4,), dropout=0.3), (1, 8, 8)),
    "unet 3 levels": (
        replace(SMALL, multipliers=(1, 2, 2), blocks=2, attention=(8, 2), heads=2, dropout=0.1),
        (3, 8, 8),
    ),
    "dit": (DiTConfig(patch=2, width=32, depth=2, heads=4), (4, 8, 4)),
}
MODEL = pytest.mark.parametrize(("config", "shape"), MODELS.values(), ids=MODELS)
LOSS = MeanFlowLoss(weight=AdaptiveWeight(p=0.5))


def build(config, shape, *, lively=True):
    """The network; ``lively`` moves all weights, for at the start the outputs are nearly 0."""
    torch.manual_seed(0)
    net = config.build(shape)
    if lively:
        with torch.no_grad():
            for p in net.parameters():
                fan_in = max(p[0].numel(), 1)
                p.add_(torch.randn_like(p) / (fan_in**0.5 if p.ndim > 1 else 4))
    return net


def draws(shape, n=4, n_equal=1, dtype=torch.float32):
    g = generator("models", *shape)
    x, e = torch.randn(2, n, *shape, generator=g).to(dtype)
    times = torch.rand(2, n, generator=g).to(dtype)
    t = times.amax(0)
    r = torch.cat([t[:n_equal], times.amin(0)[n_equal:]])
    return Draws(x, e, r, t, n_equal)


@MODEL
def test_jvp_is_the_central_difference(config, shape):
    net = build(config, shape).double().eval()
    z, v, r, t, _ = draws(shape, dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        value, du_dt = total_derivative(net, z, r, t, v)
        difference = (net(z + h * v, r, t + h) - net(z - h * v, r, t - h)) / (2 * h)
    assert value.shape == z.shape and torch.equal(value, net(z, r, t))
    scale = du_dt.abs().max()
    assert scale > 0.01  # a derivative that is worth comparing
    # Truncation h^2 / 6 |u'''| and rounding eps |u| / h, both about 1e-10 of numbers of order 1;
    # group normalisation of few pixels makes the third derivative larger.
    torch.testing.assert_close(du_dt / scale, difference / scale, rtol=0, atol=1e-6)


@MODEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("graph", [False, True])
def test_the_derivative_is_torchs(config, shape, dtype, graph):
    """To the bit, as trained with; to rounding with a graph, and with normalised groups."""
    net, (z, v, r, t, _) = build(config, shape).to(dtype).eval(), draws(shape, dtype=dtype)
    with torch.set_grad_enabled(graph):
        ours, torchs = (f(net, z, r, t, v) for f in (total_derivative, textbook_derivative))
    assert torch.equal(ours[0], torchs[0])
    rounded = graph or isinstance(config, UNetConfig)
    few = 16 * torch.finfo(dtype).eps if rounded else 0
    assert (ours[1] - torchs[1]).abs().max() <= few * torchs[1].abs().max()
    assert ours[1].requires_grad == torchs[1].requires_grad == graph


@MODEL
def test_a_derivative_with_a_graph_has_torchs_gradient(config, shape):
    """As terminal velocity matching takes it: du/dr, differentiated with respect to the weights."""
    net, (z, v, r, t, _) = build(config, shape).double().eval(), draws(shape, dtype=torch.float64)
    still = (torch.zeros_like(z), torch.ones_like(r), torch.zeros_like(t))
    found = []
    for value, du_dr in (
        terminal_derivative(net, z, r, t),
        torch.func.jvp(net, (z, r, t), still),
    ):
        loss = (value + du_dr - v).square().mean()
        found.append((loss, torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0)
    for ours, torchs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-13)


@MODEL
def test_a_derivative_costs_one_more_forward(config, shape):
    """Twice the operations; three times with attention, a product of two things that move."""
    net, (z, v, r, t, _) = build(config, shape).eval(), draws(shape)
    with torch.no_grad(), FlopCounterMode(display=False) as once:
        net(z, r, t)
    with torch.no_grad(), FlopCounterMode(display=False) as both:
        total_derivative(net, z, r, t, v)
    assert 2 <= both.get_total_flops() / once.get_total_flops() < 2.3


@MODEL
def test_r_and_t_enter_separately(config, shape):
    net = build(config, shape).double().eval()
    z, _, r, t, _ = draws(shape, dtype=torch.float64)
    with torch.no_grad():
        u = net(z, r, t)
        for moved in (net(z, r / 2, t), net(z, r, (1 + t) / 2), net(z, r / 2, t - r / 2)):
            assert (moved - u).abs().flatten(1).amax(1).min() > 1e-6


@MODEL
def test_samples_do_not_mix(config, shape):
    net = build(config, shape).double().eval()
    z, _, r, t, _ = draws(shape, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([net(z[i : i + 1], r[i : i + 1], t[i : i + 1]) for i in range(len(z))])
        torch.testing.assert_close(net(z, r, t), alone, rtol=1e-10, atol=1e-12)  # rounding


@MODEL
def test_output_starts_near_zero(config, shape):
    """The output layer's gain is 1e-5 and what it sees is of order 1 (a few, at most)."""
    z, _, r, t, _ = draws(shape)
    u = build(config, shape, lively=False)(z, r, t)
    assert 0 < u.abs().max() < 1e-3


@MODEL
@pytest.mark.parametrize("lively", [False, True], ids=["initial", "lively"])
def test_every_parameter_gets_a_gradient(config, shape, lively):
    """In training mode, dropout included, with a jvp in the step."""
    net = build(config, shape, lively=lively).train()
    terms = LOSS(net, draws(shape), beta=0.5, v_hat=boundary_velocity(net))
    terms.loss.backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    assert all(p.grad.isfinite().all() for p in net.parameters())


@MODEL
def test_dropout_acts_in_training_mode_only(config, shape):
    net, (z, v, r, t, _) = build(config, shape), draws(shape)
    modes = {}
    for mode in (True, False):
        net.train(mode)
        with torch.no_grad():
            modes[mode] = [total_derivative(net, z, r, t, v) for _ in range(2)]
    for part in (0, 1):
        assert torch.equal(modes[False][0][part], modes[False][1][part])
        same = torch.equal(modes[True][0][part], modes[True][1][part])
        assert same == (getattr(config, "dropout", 0.0) == 0)
        assert modes[True][0][part].isfinite().all()


@MODEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bfloat16_weights_run_and_keep_the_precision_of_the_input(config, shape, dtype):
    net = build(config, shape).eval()
    z, v, r, t, _ = draws(shape, dtype=dtype)
    with torch.no_grad():
        exact = total_derivative(net.to(dtype), z, r, t, v)
        rounded = total_derivative(net.to(torch.bfloat16), z, r, t, v)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == dtype and b.shape == z.shape
        # 2^-8 of relative rounding in each of about 10 layers, in the mean over the batch.
        assert (a - b).norm() / a.norm() < 0.1
        assert not torch.equal(a, b)


@MODEL
def test_bfloat16_weights_train(config, shape):
    net = build(config, shape).to(torch.bfloat16).train()
    terms = LOSS(net, draws(shape), beta=0.5, v_hat=boundary_velocity(net))
    terms.loss.backward()
    assert terms.loss.dtype == torch.float32 and terms.loss.isfinite()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def step(net, loss=LOSS, **given):
    """A function of the draws that holds the whole step: proxy, derivative and loss."""
    v_hat = boundary_velocity(net)
    return lambda d: loss(net, d, beta=0.5, v_hat=v_hat, **given).loss


def with_gradients(net, function, d):
    net.zero_grad()
    value = function(d)
    value.backward()
    return value.detach(), [p.grad.clone() for p in net.parameters()]


def assert_the_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-10, atol=0)  # float64 rounding
    for a, b in zip(one[1], other[1], strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm() + 1e-13


@MODEL
@pytest.mark.parametrize("n_equal", [0, 1, 3, 4])
def test_a_step_with_carried_tangents_is_that_of_torchs_jvp(config, shape, n_equal):
    net, d = (
        build(config, shape).double().eval(),
        draws(shape, n_equal=n_equal, dtype=torch.float64),
    )
    expected = with_gradients(net, step(net), d)
    with dual_mode():
        assert_the_same(with_gradients(net, step(net), d), expected)


@MODEL
@pytest.mark.parametrize("n_constant", [0, 1, 3])
def test_carried_derivatives_are_torchs(config, shape, n_constant):
    """Of the last samples alone, along (v, 0, 1) and along (v, 0, 0)."""
    net, (z, v, r, t, _) = build(config, shape).double().eval(), draws(shape, dtype=torch.float64)
    ways = (total_derivative(net, z, r, t, v)[1], directional_derivative(net, z, r, t, v))
    with dual_mode():
        value, du_dt = total_derivative(net, z, r, t, v[n_constant:])
        along = directional_derivative(net, z, r, t, v[n_constant:])
    torch.testing.assert_close(value, net(z, r, t), rtol=1e-10, atol=1e-12)
    for mine, torchs in zip((du_dt, along), ways, strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, torchs[n_constant:].detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["unet 2 levels", "unet 3 levels"])
def test_dropout_masks_a_value_and_its_tangent_alike(name):
    """The derivative is that of the function with the masks that it drew."""
    config, shape = MODELS[name]
    net = build(config, shape).double().train()
    z, v, r, t, _ = draws(shape, dtype=torch.float64)
    h = 1e-5

    def seeded(*args):
        torch.manual_seed(1)
        return total_derivative(net, *args)

    with torch.no_grad(), dual_mode():
        value, du_dt = seeded(z, r, t, v)
        ahead, behind = (seeded(z + s * h * v, r, t + s * h, v)[0] for s in (1, -1))
    difference = (ahead - behind) / (2 * h)
    scale = du_dt.abs().max()
    torch.testing.assert_close(du_dt / scale, difference / scale, rtol=0, atol=1e-6)
    net.eval()
    with torch.no_grad(), dual_mode():
        assert not torch.equal(seeded(z, r, t, v)[0], value)


@pytest.mark.parametrize(
    "loss",
    [
        MeanFlowLoss(trace=TraceWeight(probes=1)),
        MeanFlowLoss(trace=TraceWeight(probes=0)),
        AlphaFlowLoss(alpha=AlphaSchedule(value=0.3)),
        MeanFlowLoss(anchor=Anchor()),
        SemigroupLoss(),
        TerminalVelocityLoss(stop_derivative=True),
    ],
    ids=["trace by a probe", "exact trace", "alpha", "anchor", "semigroup", "terminal"],
)
@pytest.mark.parametrize("name", ["mlp points", "unet 1 level", "dit"])
def test_other_losses_carry_tangents_too(loss, name):
    if loss == MeanFlowLoss(trace=TraceWeight(probes=0)) and name != "mlp points":
        pytest.skip("an exact trace of images takes a derivative for each pixel")
    config, shape = MODELS[name]
    net, d = build(config, shape).double(), draws(shape, dtype=torch.float64)
    signs = draw_signs((1, *d.x.shape), generator("carried")).double()
    given = {"signs": signs, "progress": 0.5, "anchor_uniform": d.t / 2}
    expected = with_gradients(net, step(net, loss, **given), d)
    with dual_mode():
        assert_the_same(with_gradients(net, step(net, loss, **given), d), expected)


def test_a_carried_step_costs_what_its_derivatives_do():
    """No operations for samples with r = t: of 4 forwards' worth, only the share with r < t."""
    config, shape = MODELS["unet 1 level"]
    net, flops = build(config, shape), []
    for n_equal in (0, 2, 4):
        with FlopCounterMode(display=False) as counter, dual_mode():
            LOSS(net, draws(shape, n_equal=n_equal), beta=0.0, v_hat=None).loss.backward()
        flops.append(counter.get_total_flops())
    whole, half, none = flops
    assert whole - half == pytest.approx(half - none, rel=0.05) and 1.2 < whole / none < 1.4


def test_published_unet_has_its_number_of_parameters():
    """Without weights in memory; the published one counts 55.93 M with its augmentation map."""
    with torch.device("meta"):
        net = UNetConfig().build((3, 32, 32))
        u = net(torch.empty(2, 3, 32, 32), torch.empty(2), torch.empty(2))
    assert sum(p.numel() for p in net.parameters()) == 55_929_347
    assert u.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        ({"patch": 4}, 131),
        ({"patch": 2}, 131),
        ({"patch": 2, "width": 1024, "depth": 24, "heads": 16}, 459),
        ({"patch": 2, "width": 1152, "depth": 28, "heads": 16}, 676),
    ],
    ids=["B/4", "B/2", "L/2", "XL/2"],
)
def test_published_transformers_have_their_numbers_of_parameters(settings, millions):
    """Those of arXiv 2505.13447, in millions, with ImageNet's classes."""
    with torch.device("meta"):
        net = DiTConfig(classes=1000, **settings).build((4, 32, 32))
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions


def test_a_transformers_patches_go_back_where_they_came_from():
    net = DiTConfig(patch=2, width=8, depth=1, heads=2).build((3, 4, 6))
    image = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    patches = torch.nn.functional.unfold(image, 2, stride=2)  # (2, 3 * 4, patches), channel first
    tokens = patches.reshape(2, 3, 4, 6).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(net._pixels(tokens, torch.float32), image)


def test_positions_of_patches_are_their_columns_and_rows():
    table = positions(2, 3, 8)
    angles = [[at * w for w in (1, 1e-4**0.5)] for at in range(3)]
    wave = [[*map(math.sin, a), *map(math.cos, a)] for a in angles]
    expected = [wave[column] + wave[row] for row in range(2) for column in range(3)]
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("attention", "expected"),
    # The middle block always attends; a level of the way down with each block, up with the last.
    [((), 1), ((8,), 1 + 2 + 1), ((8, 4), 1 + 4 + 2), ((16,), 1)],
)
def test_attention_sits_at_the_named_resolutions(attention, expected):
    config = replace(SMALL, multipliers=(1, 2), blocks=2, attention=attention)
    net = config.build((1, 8, 8))
    assert sum(block.attention is not None for block in (*net.down, *net.up)) == expected


def test_mlp_starts_with_the_point_and_two_embeddings():
    net = MLPConfig(hidden=(5,), embedding=6).build((1, 2, 3))
    assert net.layers[0].in_features == 6 + 2 * 6 and net.head.out_features == 6


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DiTConfig, {"depth": 0}, "must be positive"),
        (DiTConfig, {"width": 30, "heads": 5}, "width must be a multiple of 4 and of heads"),
        (DiTConfig, {"width": 32, "heads": 5}, "width must be a multiple of 4 and of heads"),
        (DiTConfig, {"classes": -1}, "classes must be at least 0"),
        (MLPConfig, {"hidden": ()}, "at least one width"),
        (MLPConfig, {"hidden": (8, 0)}, "at least one width"),
        *((MLPConfig, {"embedding": n}, "embedding must be even") for n in (0, -2, 7)),
        *((UNetConfig, {"channels": n}, "multiple of 4") for n in (0, -4, 6, 2)),
        (UNetConfig, {"multipliers": ()}, "positive multipliers"),
        (UNetConfig, {"multipliers": (1, 0)}, "positive multipliers"),
        (UNetConfig, {"blocks": 0}, "at least 1 block"),
        *((UNetConfig, {"heads": n}, "heads must divide") for n in (3, -1)),
        *((UNetConfig, {"dropout": p}, "dropout must lie") for p in (-0.1, 1.0, math.nan)),
    ],
)
def test_bad_settings_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_no_heads_are_refused():
    with pytest.raises(ValueError, match="heads must divide"):
        UNetConfig(heads=0)


@pytest.mark.parametrize("shape", [(2,), (8, 8), (1, 6, 8), (1, 8, 6), (1, 1, 8, 8)])
def test_shapes_that_a_unet_cannot_take_are_refused(shape):
    with pytest.raises(ValueError, match="divisible by 4"):
        UNetConfig(channels=8, multipliers=(1, 1, 1), blocks=1).build(shape)


@pytest.mark.parametrize("shape", [(2,), (1, 6, 8), (1, 8, 6)])
def test_shapes_that_a_transformer_cannot_take_are_refused(shape):
    with pytest.raises(ValueError, match="divisible by 4"):
        DiTConfig(patch=4, width=8, depth=1, heads=1).build(shape)
