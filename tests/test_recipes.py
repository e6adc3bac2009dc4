"""Published recipes against their sources: each number is the source's own, with its citation.

Expected values are computed here from the definitions of the sources, not by the package: P is
github.com/Gsunshine/py-meanflow (arXiv 2505.13447, CIFAR-10), J github.com/Gsunshine/meanflow
(ImageNet), I github.com/Lyy-iiis/imeanflow (arXiv 2512.02012), D arXiv 2006.11239, appendix B, and
the code at github.com/hojonathanho/diffusion.
"""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest, kstest, norm

from vamf.flow.guidance import Guidance, drop_labels
from vamf.flow.objectives.ddpm import DDPM as DDPMLoss
from vamf.flow.objectives.meanflow import Anchor
from vamf.flow.objectives.terms import AdaptiveWeight
from vamf.flow.schedules import BetaSchedule
from vamf.flow.times import ClippedLogitNormalTimes, LogitNormalTimes, UniformTimes
from vamf.metrics.distances import SlicedWasserstein
from vamf.presets import PRESETS
from vamf.rng import generator
from vamf.training.step.objective import draw_noise
from vamf.training.step.trainer import Trainer, learning_rate

CIFAR10, COND, DDPM = (PRESETS[name] for name in ("cifar10", "cifar10_cond", "cifar10_ddpm"))
DITS = {name: PRESETS[f"imagenet_dit_{name}"] for name in ("b4", "b2", "l2", "xl2")}
IMFS = {name: PRESETS[f"{name}_imf"] for name in ("digits", "mnist", "cifar10")}
RARE = 1e-5
"""A correct recipe fails one of these tests of chance once in so many changes of its stream."""


@pytest.mark.parametrize(
    ("preset", "steps", "images"),
    [
        # P, models/ema.py: every 16 updates by ema_decay ** 16; appendix A: 0.99995.
        (CIFAR10, 20_000, 20_480_000),
        (COND, 20_000, 20_480_000),
        (DDPM, 10_000, 1_280_000),  # D: 0.9999 at every step, batches of 128
        *((dit, 10_000, 2_560_000) for dit in DITS.values()),  # J: ema_val 0.9999, batches of 256
        (PRESETS["toy"], 1000, 256_000),  # arXiv 2605.09235, run_toy.py: 0.999, batches of 256
    ],
    ids=["cifar10", "cifar10_cond", "cifar10_ddpm", *DITS, "toy"],
)
def test_time_constant_of_the_moving_average(preset, steps, images):
    """After k steps at the same weights, an average that was 0 has 1 - e^(-k / steps) of them."""
    small = {"model.hidden": (4,), "model.embedding": 4, "batch": 4, "steps": 64, "optim.lr": 1e-30}
    toy = PRESETS["toy"].override(small)
    own = Trainer(replace(toy, ema=preset.ema, ema_every=preset.ema_every), toy.data.load("train"))
    with torch.no_grad():
        for average in own.ema.parameters():
            average.zero_()
    for _ in range(48):
        own.train_step()
    weight, average = own.net.layers[0].weight.detach(), own.ema.module.layers[0].weight
    share = 1 - math.exp(-48 / steps)
    torch.testing.assert_close(average, share * weight, rtol=1 / steps, atol=0)
    assert steps * preset.batch == images


def rates(preset, *steps):
    return [learning_rate(preset.optim, step, preset.steps) for step in steps]


def test_learning_rates():
    """At the first steps, at the end of the warm-up and at the last step."""
    for preset in (CIFAR10, COND):  # P: LinearLR to 6e-4, then ConstantLR; appendix A: 10,000
        expected = [6e-8, 12e-8, 3e-4, 6e-4, 6e-4, 6e-4]
        assert rates(preset, 0, 1, 4999, 9999, 10_000, 799_999) == pytest.approx(expected)
    # D, diffusion_tf/utils.py: lr min(step / warmup, 1), 2e-4 and 5000.
    assert rates(DDPM, 0, 4999, 5000, 799_999) == pytest.approx([4e-8, 2e-4, 2e-4, 2e-4])
    for dit in DITS.values():  # J: learning_rate 0.0001, without a schedule
        assert rates(dit, 0, 1, dit.steps - 1) == [1e-4] * 3


def test_a_cosine_ends_one_step_after_the_last():
    """As torch's CosineAnnealingLR and optax's cosine_decay_schedule, by torch's."""
    preset = replace(PRESETS["toy"], steps=8)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=preset.optim.lr)
    final = preset.optim.lr * preset.optim.final
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=8, eta_min=final)
    for step in range(8):
        assert rates(preset, step) == pytest.approx(schedule.get_last_lr())
        optimiser.step()
        schedule.step()
    assert rates(preset, 8) == pytest.approx([final])
    assert schedule.get_last_lr() == pytest.approx([final])


def test_lengths_batches_optimisers_and_weights():
    assert CIFAR10.steps == COND.steps == DDPM.steps == 800_000  # appendix A; D
    # J: 240 epochs of whole batches of 256 out of 1,281,167 training images.
    assert {dit.steps for dit in DITS.values()} == {240 * (1_281_167 // 256)}
    assert (CIFAR10.batch, COND.batch, DDPM.batch) == (1024, 1024, 128)  # P: 128 on each of 8 GPUs
    assert {dit.batch for dit in DITS.values()} == {256}
    betas = {name: (p.optim.beta1, p.optim.beta2) for name, p in PRESETS.items()}
    assert betas["cifar10"] == betas["cifar10_cond"] == betas["cifar10_ddpm"] == (0.9, 0.999)
    assert all(betas[f"imagenet_dit_{name}"] == (0.9, 0.95) for name in DITS)  # J: adam_b2
    weights = {name: (p.loss.weight.p, p.loss.weight.c) for name, p in PRESETS.items()}
    assert weights["cifar10"] == weights["cifar10_cond"] == (0.75, 1e-3)  # P: norm_p, norm_eps
    assert all(weights[f"imagenet_dit_{name}"] == (1.0, 0.01) for name in DITS)  # J
    assert (CIFAR10.model.dropout, DDPM.model.dropout) == (0.2, 0.1)  # P; D
    guided = {
        name: (d.guidance.omega, d.guidance.cfg_kappa, d.guidance.t_min, d.guidance.t_max)
        for name, d in DITS.items()
    }
    assert guided["b4"] == (1.0, 0.5, 0.0, 1.0)  # arXiv 2505.13447, table 4; J
    assert guided["l2"] == (0.2, 0.92, 0.0, 0.8) and guided["xl2"] == (0.2, 0.92, 0.0, 0.75)


def test_parts_that_a_preset_leaves_out_are_those_of_their_sources():
    # V, arXiv 2605.09235, supplementary: DiT with beta = 1, lambda 0.1 and delta in [0, 1e-3].
    assert Anchor() == Anchor(weight=0.1, min_gap=0.0, max_gap=1e-3)
    assert AdaptiveWeight() == AdaptiveWeight(p=0.0, c=0.01)  # V: none, or l + 0.01
    # V, run_toy.py: both times in [1e-4, 1 - 1e-4], a quarter of them equal.
    assert UniformTimes() == UniformTimes(prob_equal=0.25, max_gap=1.0, margin=1e-4)
    assert LogitNormalTimes() == LogitNormalTimes(prob_equal=0.75, mean=-0.4, std=1.0)  # J
    clipped = {"t_mean": -0.6, "t_std": 1.6, "r_mean": -4.0, "r_std": 1.6}  # P
    assert ClippedLogitNormalTimes() == ClippedLogitNormalTimes(prob_equal=0.25, **clipped)
    assert DDPMLoss() == DDPMLoss(levels=1000, first=1e-4, last=0.02, clip=True)  # D
    # V, run_toy.py: 4096 points on each side, 500 directions.
    assert SlicedWasserstein() == SlicedWasserstein(samples=4096, directions=500, repetitions=4)
    plain = Guidance(omega=1.0, cfg_kappa=0.0, dropout=0.1, t_min=0.0, t_max=1.0)  # J
    assert Guidance() == plain
    constant = BetaSchedule(value=0.0, begin=0.0, finish=1.0)
    assert BetaSchedule() == constant and constant(0.5) == 0.0  # arXiv 2505.13447: beta is 0


def logit_normal(mean, std):
    """The distribution function of sigmoid(mean + std N(0, 1))."""
    return lambda x: norm.cdf((torch.logit(torch.as_tensor(x)).numpy() - mean) / std)


def times_of(preset, n=40_000):
    (_, r, t, _), equal = draw_noise(preset, (n, 1), generator("recipes"))
    return r.double(), t.double(), equal


def test_times_of_cifar10():
    """P, sample_two_timesteps_t_r_v1: r set to t for a quarter, then clipped to t."""
    r, t, _ = times_of(CIFAR10)
    of_t, of_r = logit_normal(-0.6, 1.6), logit_normal(-4.0, 1.6)
    assert kstest(t.numpy(), of_t).pvalue > RARE

    def law(x):  # of the smaller of two, or t itself
        return 0.25 * of_t(x) + 0.75 * (1 - (1 - of_t(x)) * (1 - of_r(x)))

    assert kstest(r.numpy(), law).pvalue > RARE
    share = 0.25 + 0.75 * norm.cdf((-4.0 + 0.6) / (1.6 * 2**0.5))  # P(r > t) before clipping
    assert binomtest(int((r == t).sum()), len(t), share).pvalue > RARE


@pytest.mark.parametrize("name", DITS)
def test_times_of_imagenet(name):
    """J, sample_tr: two logit-normal (-0.4, 1) times, sorted; data_proportion 0.75 has r = t."""
    r, t, equal = times_of(DITS[name])
    one = logit_normal(-0.4, 1.0)
    assert kstest(t.numpy(), lambda x: one(x) ** 2).pvalue > RARE
    earlier = r[equal:].numpy()
    assert kstest(earlier, lambda x: 1 - (1 - one(x)) ** 2).pvalue > RARE
    assert equal == 30_000 == int((r == t).sum())


@pytest.mark.parametrize("preset", IMFS.values(), ids=IMFS)
def test_improved_mean_flows(preset):
    """I, configs/default.py: P_mean, P_std, data_proportion, norm_p, norm_eps, cfg_beta and so on.

    imf.py: s_max 7, so that scales end at 1 + 7; loss_u + loss_v, v of the net at the step's h; the
    predicted velocity as the jvp's tangent.
    """
    times, rule = preset.times, preset.guidance
    assert (times.mean, times.std, times.prob_equal) == (-0.4, 1.0, 0.5)
    assert (preset.loss.weight.p, preset.loss.weight.c) == (1.0, 0.01)
    assert (rule.max_scale, rule.scale_power, rule.dropout) == (1 + 7.0, 1.0, 0.1)
    assert rule.random_interval and not (rule.cfg_kappa or rule.t_min) and rule.t_max == rule.omega
    assert (preset.head.weight, preset.head.every_r) == (1.0, True)
    assert preset.beta == BetaSchedule(value=1.0) and preset.proxy == "head"
    model = preset.model
    assert model.classes and model.guided and model.guided_interval and model.velocity_head
    # default.py, sampling: num_steps 1; train_config.yml: any interval around 0.5, as [0.4, 0.65]
    assert preset.evaluation.sampling_steps == 1
    chosen = {"guidance_scale": 7.5, "guidance_t_min": 0.4, "guidance_t_max": 0.65}
    preset.override({f"evaluation.{name}": value for name, value in chosen.items()})


def test_scales_and_intervals_of_improved_mean_flows():
    """I, imf.py, sample_cfg_scale: exp(u log(1 + 7)), u uniform; sample_cfg_interval."""
    n, rule = 40_000, IMFS["digits"].guidance
    scales = 1 / (1 - rule.draw_kappa(n, generator("scales")).double())
    assert kstest((scales.log() / math.log(8)).numpy(), "uniform").pvalue > RARE
    whole = torch.zeros(n, dtype=torch.bool)
    t_min, t_max = rule.draw_interval(whole, generator("intervals")).double().numpy().T
    assert kstest(t_min, "uniform", (0.0, 0.5)).pvalue > RARE
    assert kstest(t_max, "uniform", (0.5, 0.5)).pvalue > RARE


def test_shares_of_labels_and_augmentations():
    n = 40_000
    for preset in (*DITS.values(), COND, *IMFS.values()):  # J, I: class_dropout_prob 0.1
        y = torch.zeros(n, dtype=torch.long)
        classes, share = preset.model.classes, preset.guidance.dropout
        dropped = drop_labels(y, classes, share, generator("labels")).dropped
        assert binomtest(int(dropped.sum()), n, 0.1).pvalue > RARE
    # P, train_loop.py: AugmentPipe(p=0.12, xflip=1e8, scale=1, aniso=1, translate_frac=1), after
    # torchvision's RandomHorizontalFlip.
    strengths = CIFAR10.augment.draw(n, generator("augment"))
    mirror, xflip, yflip, scale, angle, stretch, axis, x, y = strengths.unbind(1)
    shares = {0.5: (mirror, xflip), 0.12: (scale, stretch), 0.0: (yflip, angle)}
    for share, columns in shares.items():
        for column in columns:
            assert binomtest(int((column != 0).sum()), n, share).pvalue > RARE
    # aniso_rotate_prob 0.5 of all axes; both shifts at once
    assert binomtest(int((axis != 0).sum()), n, 0.5).pvalue > RARE
    assert torch.equal(x != 0, y != 0) and binomtest(int((x != 0).sum()), n, 0.12).pvalue > RARE
    for column in (scale, stretch, x, y):
        assert kstest(column[column != 0].numpy(), norm.cdf).pvalue > RARE


def glorot(fan_in, fan_out, gain=1.0):
    return gain * math.sqrt(2 / (fan_in + fan_out)), True


def check_weights(net, table):
    """Means, deviations and ranges of all weights and biases; the table names every parameter."""
    table = dict(table)
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
            continue
        if "norm" in name:
            assert (p == 1).all(), name
            continue
        std, uniform = table.pop(name)
        error = 5 / math.sqrt(2 * p.numel())  # more than five deviations of a deviation's
        assert abs(p.std() / std - 1) < error and abs(p.mean()) < 5 * std / p.numel() ** 0.5, name
        if uniform:
            assert p.abs().max() <= math.sqrt(3) * std * (1 + 1e-6), name
    assert not table


@pytest.mark.parametrize("name", DITS)
def test_weights_of_the_transformer_at_the_start(name):
    """J, models_dit.py: Glorot-uniform layers, N(0, 0.02) embeddings, and zeros behind gates.

    The patches' convolution has in_axis (0, 1, 2) in timm_models.py: it is a linear layer. Gates
    and the output are 1e-5 times Glorot's here (vamf.models.dit says why).
    """
    preset = DITS[name]
    w, p, c = preset.model.width, preset.model.patch, preset.data.shape[0]
    torch.manual_seed(0)
    net = replace(preset.model, depth=1).build(preset.data.shape)
    table = {"patches.weight": glorot(p * p * c, w), "labels.table.weight": (0.02, False)}
    for part in ("time", "gap"):
        table |= {f"{part}.{layer}.weight": (0.02, False) for layer in ("first", "second")}
    table |= {
        "blocks.0.qkv.weight": glorot(w, 3 * w),
        "blocks.0.proj.weight": glorot(w, w),
        "blocks.0.wide.weight": glorot(w, 4 * w),
        "blocks.0.narrow.weight": glorot(4 * w, w),
        "blocks.0.modulation.layer.weight": glorot(w, 6 * w, 1e-5),
        "out.modulation.layer.weight": glorot(w, 2 * w, 1e-5),
        "out.layer.weight": glorot(w, p * p * c, 1e-5),
    }
    check_weights(net, table)


def test_weights_of_the_u_net_at_the_start():
    """P, unet.py: init, init_zero (1e-5) and init_attn (sqrt(0.2)) of Glorot-uniform weights."""
    torch.manual_seed(0)
    net = replace(COND.model, multipliers=(2,), blocks=1, attention=(32,)).build((3, 32, 32))
    table = {
        "conv_in.weight": glorot(3 * 9, 128 * 9),
        "map0.weight": glorot(512, 512),
        "map1.weight": glorot(512, 512),
        "augment.weight": glorot(6, 512),
        "conv_out.weight": glorot(256 * 9, 3 * 9, 1e-5),
        # EDM, SongUNet: map_label(one-hot sqrt(classes)), fan-in 10; an 11th row is for no class
        "labels.table.weight": glorot(11, 512, math.sqrt(10)),
    }
    blocks = [("down.0", 128), ("up.0", 256), ("up.1", 256), ("up.2", 512), ("up.3", 384)]
    for block, channels in blocks:
        table |= {
            f"{block}.conv0.weight": glorot(channels * 9, 256 * 9),
            f"{block}.conv1.weight": glorot(256 * 9, 256 * 9, 1e-5),
            f"{block}.affine.weight": glorot(512, 256),
        }
        if channels != 256:
            table[f"{block}.skip.weight"] = glorot(channels, 256)
        if block in ("down.0", "up.0", "up.3"):
            table[f"{block}.attention.qkv.weight"] = glorot(256, 768, math.sqrt(0.2))
            table[f"{block}.attention.proj.weight"] = glorot(256, 256, 1e-5)
    check_weights(net, table)
