"""Precisions and compilation change how a step is computed, not what it computes."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from jobs import bench
from vamf.experiment_settings import Compute
from vamf.flow.derivatives import textbook_derivative
from vamf.flow.duals import dual_mode
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.models.fast import fused, reference_ops
from vamf.presets import FAST, PRESETS
from vamf.rng import generator
from vamf.training.loop import Session, train
from vamf.training.step import precision, precision_check, preparation
from vamf.training.step.precision import in_precision, require, rounding_once
from vamf.training.step.precision_check import check, deviations, self_test
from vamf.training.step.trainer import Trainer

TOY = PRESETS["toy"].override({"model.hidden": (16, 16), "model.embedding": 8, "batch": 32})
DIGITS = PRESETS["digits"].override({"model.channels": 8, "batch": 8, "beta.value": 0.5})
ROUNDED = {"compute.precision": "bfloat16"}


def trainer(experiment, lively=True):
    own = Trainer(experiment, experiment.data.load("train"))
    if lively:
        g = generator("lively")
        with torch.no_grad():
            for p in own.net.parameters():
                p.add_(torch.randn(p.shape, generator=g) / max(p[0].numel(), 1) ** 0.5)
    return own


def weights(own):
    return torch.cat([p.detach().flatten() for p in own.net.parameters()])


def gradient(own):
    return torch.cat([p.grad.flatten() for p in own.net.parameters()])


@pytest.mark.parametrize("experiment", [TOY, DIGITS], ids=["toy", "digits"])
@pytest.mark.parametrize("proxy", ["online", "ema"])
def test_every_precision_is_near_float64(experiment, proxy):
    own = trainer(experiment.override({"proxy": proxy}))
    modes = {p: Compute(precision=p) for p in ("float32", "bfloat16")}
    found = deviations(own, tuple(modes.values()))
    exact, rounded = (found[mode] for mode in modes.values())
    # Rounding of 2^-24, amplified by a network with weights of order 1.
    assert exact.dudt < 1e-4 and exact.loss < 1e-4 and exact.cosine > 1 - 1e-8
    assert exact.norm == pytest.approx(1, abs=1e-4)
    # Rounding of 2^-9 in some ten layers: bfloat16 is used, and no more than that is lost.
    assert 1e-4 < rounded.dudt < 0.2 and rounded.cosine > 0.98
    assert rounded.norm == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("experiment", [TOY, DIGITS], ids=["toy", "digits"])
def test_the_gradient_at_initialisation_is_that_of_float64(experiment):
    """In the mode of the presets for GPUs; rounding of 2^-9 turns it by less than 1 / 22."""
    own = trainer(experiment, lively=False)
    assert deviations(own, (FAST,))[FAST].cosine > 0.999


def test_a_guided_network_is_compared_without_labels():
    over = {"guidance.omega": 2.0, "model.classes": 10, "proxy": "ema"}
    own = trainer(DIGITS.override(over))
    found = deviations(own, (FAST,))[FAST]
    assert 1e-4 < found.dudt < 0.2 and found.cosine > 0.98


def test_checking_leaves_training_as_it_was():
    one, other = trainer(TOY), trainer(TOY)
    one.train_step()
    deviations(one, (Compute(precision="bfloat16"),))
    assert torch.get_float32_matmul_precision() == "highest"
    one.train_step()
    for _ in range(2):
        other.train_step()
    assert torch.equal(weights(one), weights(other)) and one.net.training


@pytest.mark.parametrize("proxy", ["online", "ema", "oracle"])
def test_bfloat16_trains_float32_weights(proxy):
    rounded = {**ROUNDED, "proxy": proxy, "beta.value": 0.5}
    exact, own = (
        trainer(TOY.override({**rounded, **{"compute.precision": "float32"}})),
        trainer(TOY.override(rounded)),
    )
    start = weights(own)
    for trained in (exact, own):
        for _ in range(5):
            trained.train_step()
    assert {p.dtype for p in own.net.parameters()} == {torch.float32}
    way, other = weights(own) - start, weights(exact) - start
    assert not torch.equal(way, other)
    assert torch.cosine_similarity(way, other, dim=0) > 0.9  # Adam magnifies small gradients


def test_weights_that_are_rounded_once_have_the_gradient_of_those_rounded_at_every_call(
    monkeypatch,
):
    """To the bit, although a pass without a graph runs first."""
    net = trainer(TOY).net
    u = in_precision(net, FAST)
    z, t = torch.randn(8, 2, generator=generator("z")), torch.full((8,), 0.5)
    found, calls, cast = [], [], precision._cast
    monkeypatch.setattr(precision, "_cast", lambda *args: calls.append(1) or cast(*args))
    for rounding in (nullcontext, rounding_once):
        calls.clear()
        with dual_mode(), rounding():
            with torch.no_grad():
                before = u(z, t, t)
            loss = (u(z, t, t) - 2 * before).square().sum()
        found.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
        assert len(calls) == 3 - (rounding is rounding_once)  # and once backwards
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.no_grad():
        next(net.parameters()).add_(1)
        assert not torch.equal(u(z, t, t), before)  # kept no longer


def test_what_cannot_be_is_refused():
    anchored = TOY.override({"loss.anchor.weight": 0.1})
    with pytest.raises(ValueError, match="MeanFlowLoss with at most its weight set"):
        check(trainer(anchored), compiled=False)


def test_a_gpu_without_a_compiler_is_refused_before_anything_starts(monkeypatch, tmp_path):
    """As in container images without a compiler."""
    gpu, compiled = torch.device("cuda"), Compute(compile=True)
    monkeypatch.setattr(fused, "TRITON", True)
    monkeypatch.setenv("CC", "some-compiler")
    monkeypatch.setattr(fused.sysconfig, "get_paths", lambda _: {"include": str(tmp_path)})
    with pytest.raises(ValueError, match=r"got some-compiler and no .*Python\.h"):
        require(compiled, gpu)
    (tmp_path / "Python.h").touch()
    require(compiled, gpu)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"need a C compiler.*got no compiler.*compute\.compile"):
        require(compiled, gpu)
    require(Compute(), gpu)
    require(compiled, torch.device("cpu"))


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    gpu, rounded = torch.device("cuda"), Compute(precision="bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ValueError, match=r"capability 8\.0 or more; got Tesla T4: set compute"):
        require(rounded, gpu)
    require(Compute(), gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    require(rounded, gpu)


COMPILED = {"compute.compile": True}


@pytest.mark.parametrize("experiment", [TOY, DIGITS], ids=["toy", "digits"])
def test_compiled_steps_are_the_eager_ones(experiment):
    """With a beta that moves, and a proxy; each step from the same state, as Adam magnifies.

    Another beta or proxy, such as beta.end = 0.9 or the online network, differs by over 2e-4.
    """
    moving = experiment.override(
        {"beta.shape": "linear", "beta.end": 1.0, "proxy": "ema", "ema": 0.9}
        | {"steps": 4, "times.prob_equal": 0.25, "loss.weight.p": 0.0}
    )
    eager, compiled = trainer(moving), trainer(moving.override(COMPILED))
    for _ in range(4):
        compiled.load_state_dict(eager.state_dict())
        for own in (eager, compiled):
            own.train_step()
        assert (gradient(compiled) - gradient(eager)).norm() < 1e-5 * gradient(eager).norm()
    assert compiled.collect() == pytest.approx(eager.collect(), rel=1e-5)


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_compiled_numbers_are_near_float64(precision, bound):
    own = trainer(DIGITS)
    mode = Compute(precision=precision, compile=True)
    found = deviations(own, (mode,))[mode]
    assert found.dudt < 100 * bound and found.cosine > 1 - bound
    assert found.norm == pytest.approx(1, abs=10 * bound)


BOTH = COMPILED | ROUNDED


@pytest.mark.parametrize("experiment", [TOY, DIGITS], ids=["toy", "digits"])
@pytest.mark.parametrize("over", [ROUNDED, COMPILED, BOTH], ids=["rounded", "compiled", "both"])
def test_a_mode_passes_its_own_test_and_trains_as_without_it(experiment, over):
    one, other = (trainer(experiment.override(over | {"batch": 7})) for _ in range(2))
    self_test(one)
    for own in (one, other):
        own.train_step()
    assert torch.equal(weights(one), weights(other)) and one.net.training


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_test_of_a_mode_takes_any_share_of_equal_times(share):
    self_test(trainer(DIGITS.override(BOTH | {"times.prob_equal": share})))


def test_the_test_of_a_mode_takes_times_that_were_clipped():
    """All samples that are drawn with r < t have r > t and are clipped: du/dt has the factor 0."""
    clipped = {"times.kind": "ClippedLogitNormalTimes", "times.prob_equal": 0.25}
    own = trainer(DIGITS.override(BOTH | clipped | {"times.r_mean": 9.0, "times.t_mean": -9.0}))
    draws = own.objective.draw(own.step)[0]
    assert draws.n_equal < len(draws.x) and torch.equal(draws.r, draws.t)
    self_test(own)


@pytest.mark.parametrize(("apart", "passes"), [((), True), ((6,), False)])
def test_samples_with_r_below_t_are_tried_wherever_they_are(monkeypatch, apart, passes):
    """Of a batch of eight whose first two have r = t, all others but those ``apart`` too."""
    own = trainer(DIGITS.override(BOTH))
    draws = own.objective.draw(own.step)[0]
    r = draws.t.clone()
    r[list(apart)] /= 2
    monkeypatch.setattr(own.objective, "draw", lambda step: (draws._replace(r=r, n_equal=2), None))
    normalise = reference_ops.normalise

    def other_tangent(*args, **how):
        y, dy, coefficients = normalise(*args, **how)
        return y, dy if dy is None else 1.5 * dy, coefficients

    monkeypatch.setattr(reference_ops, "normalise", other_tangent)
    with nullcontext() if passes else pytest.raises(ValueError, match="must be that of float64"):
        self_test(own)


class OnlyBackwards(torch.autograd.Function):
    """As a fused attention kernel: without forward mode."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize(
    "over",
    [
        ROUNDED | {"loss.kind": "SemigroupLoss", "beta.value": 0.0},
        COMPILED | {"loss.difference.epsilon": 0.01},
        ROUNDED | {"loss.kind": "AlphaFlowLoss", "loss.alpha.value": 0.5},
    ],
    ids=["semigroup", "difference", "alpha"],
)
def test_a_network_without_forward_mode_is_tested_where_steps_take_no_derivative(over):
    own = trainer(TOY.override(over))
    own.net.register_forward_hook(lambda net, given, value: OnlyBackwards.apply(value))
    self_test(own)
    own.train_step()
    assert own.collect()["loss/train"] > 0


def test_a_batch_is_its_own_proxy_where_precisions_are_compared():
    own = trainer(TOY.override({"proxy": "batch", "beta.value": 0.5}))
    mode = Compute(precision="float32")
    assert deviations(own, (mode,))[mode].dudt < 1e-4


@pytest.mark.parametrize("wrong", ["tangent", "gradient"])
def test_a_mode_that_computes_something_else_refuses_to_train(monkeypatch, tmp_path, wrong):
    monkeypatch.setattr(preparation, "_prepared", set())  # other tests may have trained such steps
    normalise, backward = reference_ops.normalise, reference_ops.normalise_backward

    def other_tangent(*args, **how):
        y, dy, coefficients = normalise(*args, **how)
        return y, dy if dy is None else 1.3 * dy, coefficients

    def other_gradient(*args, **how):
        gx, *rest = backward(*args, **how)
        return gx.flip(1), *rest

    if wrong == "tangent":
        monkeypatch.setattr(reference_ops, "normalise", other_tangent)
    else:
        monkeypatch.setattr(reference_ops, "normalise_backward", other_gradient)
    with pytest.raises(ValueError, match=r"a step in bfloat16, compiled must be that of float64"):
        train(DIGITS.override(BOTH | {"steps": 2}), Session(directory=tmp_path))
    train(DIGITS.override({"steps": 2}), Session(directory=tmp_path))  # which has nothing of it


def test_a_process_tests_each_kind_of_step_once(monkeypatch):
    tested = []
    monkeypatch.setattr(preparation, "_prepared", set())
    monkeypatch.setattr(preparation, "self_test", lambda own: tested.append(own.experiment))
    first = TOY.override(ROUNDED | {"beta.value": 0.7})
    alike = [{}, {"seed": 1, "beta.value": 0.3, "optim.lr": 1e-4}, {"data.name": "pinwheel"}]
    others = [{"beta.value": 0.0}, {"batch": 16}, {"model.hidden": (8,)}, {"times.prob_equal": 0.5}]
    for over in (*alike, *others, {}):
        preparation.prepare_steps(trainer(first.override(over)))
    assert tested == [first, *(first.override(over) for over in others)]

    class Theirs(MeanFlowLoss):
        """An objective of the user's own, whose code may change in a notebook."""

    for _ in range(2):
        preparation.prepare_steps(trainer(replace(first, loss=Theirs())))
    assert [type(own.loss) for own in tested[-2:]] == [Theirs, Theirs]


def test_a_network_whose_derivative_is_not_that_of_its_values_refuses_to_train(monkeypatch):
    own = trainer(DIGITS.override(BOTH))
    monkeypatch.setattr(
        precision_check,
        "textbook_derivative",
        lambda *args: (v := textbook_derivative(*args), 2 * v[1]),
    )
    with pytest.raises(ValueError, match="derivative must be that of its values"):
        self_test(own)


def test_the_job_checks_and_compares(tmp_path, capsys):
    bench.main(["toy", "--batch", "16", "--check", "--out", str(tmp_path / "check.json")])
    out = capsys.readouterr().out
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    assert f"toy, batch 16, {where}" in out and "bfloat16" in out and "gradient cosine" in out
    assert json.loads((tmp_path / "check.json").read_text())["float32"]["cosine"] > 0.999
    with pytest.raises(SystemExit):
        bench.main(["toy", "--baseline", str(tmp_path / "check.json")])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("must be a file that python -m jobs.bench wrote with --out")
