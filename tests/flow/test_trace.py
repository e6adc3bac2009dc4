"""The trace weight against closed forms, and that it changes nothing where it should not."""

import math

import pytest
import torch

from vamf.flow.objectives.meanflow import Anchor, MeanFlowLoss
from vamf.flow.objectives.terms import AdaptiveWeight, Draws
from vamf.flow.trace import TraceWeight, draw_signs
from vamf.rng import generator
from vamf.typing import expand_like

N, N_EQUAL, DIM = 8, 3, 2
PLAIN = MeanFlowLoss(weight=AdaptiveWeight(p=0.5), anchor=Anchor(weight=0.2, max_gap=0.1))


def draws(n_equal=N_EQUAL):
    g = generator("trace draws")
    x, e = torch.randn(2, N, DIM, generator=g, dtype=torch.float64)
    times = 0.05 + 0.9 * torch.rand(2, N, generator=g, dtype=torch.float64)
    t = times.amax(0)
    return Draws(x, e, torch.cat([t[:n_equal], times.amin(0)[n_equal:]]), t, n_equal)


class Net(torch.nn.Module):
    """u = w sin(3 z) t (1 + r), whose Jacobian in z is diagonal."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.7, -1.9], dtype=torch.float64))

    def forward(self, z, r, t):
        return self.w * torch.sin(3 * z) * (t * (1 + r))[:, None]

    def trace(self, z, r, t):
        """Tr(J J^T) / d by hand."""
        slope = 3 * self.w * torch.cos(3 * z) * (t * (1 + r))[:, None]
        return ((t - r)[:, None] * slope - 1).square().mean(1).detach()


def signs(probes):
    return draw_signs((probes, N, DIM), generator("signs", probes)).double()


def loss(settings, d=None, net=None, probes=None):
    weight = (
        PLAIN
        if settings is None
        else MeanFlowLoss(weight=PLAIN.weight, anchor=PLAIN.anchor, trace=TraceWeight(**settings))
    )
    d, net = d or draws(), net or Net()
    uniform = torch.linspace(0, 1, N, dtype=torch.float64)
    return weight(net, d, beta=0.3, v_hat=lambda z, t: -z, anchor_uniform=uniform, signs=probes)


@pytest.mark.parametrize(
    ("sigma", "formula"),
    [
        ("constant", lambda t: 1),
        ("linear", lambda t: t),
        ("quadratic", lambda t: t**2),
        ("bridge", lambda t: math.sqrt(t * (1 - t))),
        ("path", lambda t: 1 / math.sqrt((1 - t) ** 2 + t**2)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_weight_formula(sigma, formula, scale):
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    trace = torch.tensor([0.0, 1.0, 2.0, 10.0, 1e6], dtype=torch.float64)
    expected = [
        1 / (1 + (scale * formula(s)) ** 2 * q)
        for s, q in zip(t.tolist(), trace.tolist(), strict=True)
    ]
    weight = TraceWeight(sigma=sigma, scale=scale)(trace, t)
    assert weight.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("probes", [0, 1, 4])
@pytest.mark.parametrize("n_equal", [0, N_EQUAL, N])
def test_trace_in_closed_form(probes, n_equal):
    """A diagonal J has |J s|^2 = Tr(J J^T) for all sign vectors: probes and axes agree."""
    net, d = Net(), draws(n_equal)
    z = (1 - d.t)[:, None] * d.x + d.t[:, None] * d.e
    weight = TraceWeight(probes=probes)
    trace = weight.trace(net, z, d.r, d.t, n_equal, signs(probes) if probes else None)
    assert not trace.requires_grad and (trace[:n_equal] == 1).all()
    torch.testing.assert_close(trace, net.trace(z, d.r, d.t), rtol=1e-12, atol=0)


def test_samples_with_equal_times_never_enter_the_jvp():
    """A u whose derivative is infinite at r = t weighs there as Tr(J J^T) = d says."""

    def u(z, r, t):
        return z * (1 + (t - r).sqrt())[:, None]

    terms = loss({"probes": 1}, net=u, probes=signs(1))
    assert terms.loss.isfinite()


@pytest.mark.parametrize("sigma", ["constant", "quadratic"])
@pytest.mark.parametrize("probes", [0, 2])
def test_loss_weighs_each_sample_and_not_the_anchor(sigma, probes):
    net, d = Net(), draws()
    terms = loss({"sigma": sigma, "probes": probes}, d, net, signs(probes) if probes else None)
    plain = loss(None, d, net)
    z = (1 - d.t)[:, None] * d.x + d.t[:, None] * d.e
    sigma_t = d.t**2 if sigma == "quadratic" else torch.ones_like(d.t)
    weight = 1 / (1 + sigma_t**2 * net.trace(z, d.r, d.t))
    assert torch.equal(terms.squared_error, plain.squared_error)  # unweighted
    error = plain.squared_error
    weighted = error / (error + 0.01).sqrt()
    anchor = plain.loss - weighted.mean()
    torch.testing.assert_close(terms.loss, (weight * weighted).mean() + anchor, rtol=1e-12, atol=0)


def test_weight_passes_no_gradient():
    """The gradient is that of the errors with the weights held fixed."""
    net, d = Net(), draws(0)
    z = (1 - d.t)[:, None] * d.x + d.t[:, None] * d.e
    weights = 1 / (1 + d.t**2 * net.trace(z, d.r, d.t))
    bare = MeanFlowLoss(trace=TraceWeight())
    terms = bare(net, d, beta=0.0, v_hat=None, signs=signs(1))
    (gradient,) = torch.autograd.grad(terms.loss, net.w)
    rows = []
    for i in range(N):
        one = Draws(*(part[i : i + 1] for part in d[:4]), 0)
        alone = MeanFlowLoss()(net, one, beta=0.0, v_hat=None).loss
        rows.append(weights[i] * torch.autograd.grad(alone, net.w)[0])
    torch.testing.assert_close(gradient, sum(rows) / N, rtol=1e-11, atol=0)


@pytest.mark.parametrize("probes", [0, 1])
def test_neutral_is_mean_flow_to_the_bit(probes):
    net, d = Net(), draws()
    neutral = loss({"sigma": "constant", "scale": 0.0, "probes": probes}, d, net, signs(1))
    plain = loss(None, d, net)
    assert torch.equal(neutral.loss, plain.loss)
    pairs = (torch.autograd.grad(terms.loss, net.w)[0] for terms in (neutral, plain))
    assert torch.equal(*pairs)


def test_masks_of_dropout_are_those_without_the_weight():
    """The trace is taken last: what it draws comes after all that the loss would draw anyway."""

    class Dropped(Net):
        def forward(self, z, r, t):
            return torch.nn.functional.dropout(super().forward(z, r, t), 0.5)

    errors = []
    for settings in (None, {"probes": 1}):
        torch.manual_seed(0)
        errors.append(loss(settings, net=Dropped(), probes=signs(1)).squared_error)
    assert torch.equal(*errors)


def test_images_are_weighed_by_all_their_axes():
    x, e = torch.randn(2, 4, 1, 3, 3, generator=generator("images"))
    t = torch.linspace(0.2, 0.8, 4)
    d = Draws(x, e, t / 2, t, 0)
    probe = draw_signs((1, *x.shape), generator("image signs"))

    def u(z, r, t):
        return expand_like(t, z) * z

    terms = MeanFlowLoss(trace=TraceWeight(sigma="constant"))(
        u, d, beta=0.0, v_hat=None, signs=probe
    )
    weight = 1 / (1 + ((t / 2) * t - 1).square())  # J = ((t - r) t - 1) I
    expected = (weight * terms.squared_error).mean()
    torch.testing.assert_close(terms.loss, expected, rtol=1e-5, atol=0)  # float32


@pytest.mark.parametrize("probes", [0, 2])
def test_one_sample_alone_has_the_trace_that_it_has_in_a_batch(probes):
    net, d, given = Net(), draws(0), signs(probes) if probes else None
    z = (1 - d.t)[:, None] * d.x + d.t[:, None] * d.e
    weight = TraceWeight(probes=probes)
    whole = weight.trace(net, z, d.r, d.t, 0, given)
    for k in range(N):
        own = None if given is None else given[:, k : k + 1]
        one = weight.trace(net, *(part[k : k + 1] for part in (z, d.r, d.t)), 0, own)
        torch.testing.assert_close(one, whole[k : k + 1], rtol=1e-12, atol=0)


def test_signs_are_fair_and_independent():
    s = draw_signs((2, 4000, 3), generator("fair"))
    assert set(s.unique().tolist()) == {-1.0, 1.0} and s.dtype == torch.float32
    # 5 standard errors of means over 4000 and of products over them.
    assert s.mean(1).abs().max() < 5 * 4000**-0.5
    assert (s[0] * s[1]).mean(0).abs().max() < 5 * 4000**-0.5
    assert (s[0, :, 0] * s[0, :, 1]).mean().abs() < 5 * 4000**-0.5


@pytest.mark.parametrize("probes", [None, 1, 3])
def test_missing_signs_are_refused(probes):
    given = None if probes is None else signs(probes)
    with pytest.raises(ValueError, match="needs signs for 2 probes; got"):
        loss({"probes": 2}, probes=given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -0.1}, "scale must be at least 0; got -0.1"),
        ({"scale": math.nan}, "scale must be at least 0"),
        ({"probes": -1}, "probes must be at least 0; got -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TraceWeight(**settings)
