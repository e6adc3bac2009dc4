"""Named experiments."""

from dataclasses import replace

from vamf import serialization, user_modules
from vamf.data.augment import Augmentation
from vamf.data.digits import Digits
from vamf.data.latents import Latents
from vamf.data.torchvision_sets import CIFAR10, MNIST
from vamf.data.toys import Toy
from vamf.diagnostics.probe import Probe
from vamf.experiment import Experiment
from vamf.experiment_settings import Checkpoints, Compute, Evaluation, Optimiser, VelocityHead
from vamf.experiment_stages import Stage
from vamf.flow.guidance import Guidance
from vamf.flow.objectives.ddpm import DDPM
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import AdaptiveWeight
from vamf.flow.schedules import BetaSchedule
from vamf.flow.times import ClippedLogitNormalTimes, LogitNormalTimes, UniformTimes
from vamf.metrics.distances import FrechetDistance, SlicedWasserstein
from vamf.models.dit import DiTConfig
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig

# The tangent of improved Mean Flows: on these data, beta = 1 gives the smallest distance.
DIGITS = Experiment(
    data=Digits(),
    model=UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(), dropout=0.0),
    times=LogitNormalTimes(prob_equal=0.75),
    beta=BetaSchedule(value=1.0),
    proxy="online",
    loss=MeanFlowLoss(weight=AdaptiveWeight(p=1.0)),
    optim=Optimiser(lr=2e-3, warmup=50),
    ema=0.998,
    batch=128,
    steps=4000,
    evaluation=Evaluation(every=1000, distance=FrechetDistance()),
    checkpoint=Checkpoints(every=1000),
)

# Shortened to a trial's share of a search on two cores.
DIGITS_SEARCH = replace(
    DIGITS,
    ema=0.98,
    steps=400,
    evaluation=Evaluation(every=400, distance=FrechetDistance()),
    checkpoint=Checkpoints(every=200, keep=1),
    probe=Probe(every=400, pairs=4, bins=3, weighted=True),
)

# The protocol of arXiv 2605.09235 for points; samples use the largest gap that is trained.
TOY = Experiment(
    data=Toy(name="eight_gaussians"),
    model=MLPConfig(),
    times=UniformTimes(prob_equal=0.25),
    optim=Optimiser(lr=1e-3),
    ema=0.999,
    batch=256,
    steps=20_000,
    log_every=200,
    evaluation=Evaluation(every=5000, distance=SlicedWasserstein()),
    checkpoint=Checkpoints(every=5000),
)

# Used by presets that need a GPU, where their sources use float32 or TF32. On an H200 a step of the
# U-Net takes a fifth of an eager step's time (vamf/benchmarks/README.md).
FAST = Compute(precision="bfloat16", compile=True)

# For presets whose batch does not fit into every GPU: on an H200, `cifar10` needs 44 GiB whole and
# 12 in four micro-batches, `imagenet_dit_xl2` 112 and 34, or 21 with compute.checkpointing.
IN_PARTS = replace(FAST, accumulate="auto")

# The recipe that the authors of Mean Flows publish for CIFAR-10: arXiv 2505.13447, appendix A, and
# `cifar10_v1` of their PyTorch code, which reaches FID 2.80 to 2.92. The network is the DDPM++
# network with 55.93 M parameters and dropout 0.2. r and t have separate logit-normal distributions;
# 3 of 4 samples have r < t before clipping. Weights are (l + 1e-3)^-0.75 of an image's summed
# error. Adam (0.9, 0.999) has 6e-4 after 10,000 steps of warm-up. Batches have 1,024 images; there
# are 800,000 steps. The moving average decays by 0.99995 a step, and is updated every 16 steps by
# 0.99995^16. The loader mirrors images; they are augmented as in EDM (arXiv 2206.00364) with p =
# 0.12, without vertical flips and rotations. Numbers of steps are the paper's; the script's 16,000
# epochs and 200 of warm-up make 768,000 and 9,600, because it drops the last 848 of an epoch's
# 50,000 images. Its first learning rate is 1e-8; here it is lr / 10,000 = 6e-8.
CIFAR10_TIMES = ClippedLogitNormalTimes(
    prob_equal=0.25, t_mean=-0.6, t_std=1.6, r_mean=-4.0, r_std=1.6
)
CIFAR10_UNCONDITIONAL = Experiment(
    data=CIFAR10(),
    model=UNetConfig(augmentations=6),
    augment=Augmentation(p=0.12, mirror=True),
    times=CIFAR10_TIMES,
    beta=BetaSchedule(value=0.0),
    loss=MeanFlowLoss(weight=AdaptiveWeight(p=0.75, c=1e-3)),
    compute=IN_PARTS,
    optim=Optimiser(lr=6e-4, beta1=0.9, beta2=0.999, warmup=10_000, final=1.0),
    ema=0.99995,
    ema_every=16,
    batch=1024,
    steps=800_000,
    log_every=100,
    # 10,000 samples during training; `jobs.evaluate --samples 50000` gives the value in papers.
    evaluation=Evaluation(
        every=10_000, distance=FrechetDistance(extractor="inception", samples=10_000)
    ),
    checkpoint=Checkpoints(every=5000),
)

# The same with classes; no recipe is published for it. A tenth of the labels is dropped, as for
# ImageNet in arXiv 2505.13447. There is no guidance: a search is to find it.
CIFAR10_CONDITIONAL = replace(
    CIFAR10_UNCONDITIONAL,
    model=UNetConfig(augmentations=6, classes=10),
    guidance=Guidance(omega=1.0, cfg_kappa=0.0, dropout=0.1),
)

# What two minutes of one H200 give; this and the next two were measured in
# vamf/reproduction/RESULTS.md. Chosen without trying them one by one: no dropout, no transformation
# but mirroring, as an image is seen six times, and Adam's faster second moment. With a share of
# r < t as large as in `cifar10` the network was lost after flow matching.
CIFAR10_SHORT = replace(
    CIFAR10_UNCONDITIONAL,
    model=UNetConfig(augmentations=6, dropout=0.0),
    augment=Augmentation(p=0.0, mirror=True),
    times=replace(CIFAR10_TIMES, prob_equal=0.75),
    beta=BetaSchedule(value=1.0),
    proxy="online",
    stages=(
        Stage(
            share=0.25,
            times=replace(CIFAR10_TIMES, prob_equal=1.0),
            beta=BetaSchedule(),
            optim=Optimiser(lr=8e-4, beta2=0.99, warmup=300, final=1.0),
        ),
    ),
    compute=FAST,
    optim=Optimiser(lr=8e-4, beta2=0.99, warmup=100),
    ema=0.998,
    ema_every=1,
    batch=128,
    steps=2500,
    evaluation=Evaluation(
        every=2500, distance=FrechetDistance(extractor="cifar10_cnn64_v1", samples=10_000)
    ),
    checkpoint=Checkpoints(every=2500),
)

# The same, told the class of each image, and guided inside the target, so that one evaluation makes
# a guided sample. Of the scales only 1 and 1.5 were tried.
CIFAR10_SHORT_CONDITIONAL = replace(
    CIFAR10_SHORT,
    model=UNetConfig(augmentations=6, dropout=0.0, classes=10),
    guidance=Guidance(omega=1.5, cfg_kappa=0.0, dropout=0.1),
)

# The same for less than twenty-five minutes, with the one scale that was tried: its samples were
# nearer to real ones when the trained network was guided a little more.
CIFAR10_25MIN = replace(
    CIFAR10_SHORT_CONDITIONAL,
    guidance=Guidance(omega=1.35, cfg_kappa=0.0, dropout=0.1),
    stages=(replace(CIFAR10_SHORT.stages[0], share=0.1),),
    ema=0.999,
    steps=20_000,
    evaluation=replace(CIFAR10_SHORT.evaluation, every=5000),
    checkpoint=Checkpoints(every=5000),
)

# What improved Mean Flows add, with the numbers of arXiv 2512.02012 and of `imf.py`,
# `configs/default.py` and `configs/train_config.yml` of github.com/Lyy-iiis/imeanflow (ImageNet).
# The tangent and the velocity in guidance are those of a velocity head, which is trained on the
# guided velocity at every r, with the weight of the loss (l + 0.01)^-1 and a factor of 1. Times are
# logit-normal (-0.4, 1); half of the samples have r = t. The guidance scale is log-uniform from 1
# to 8 (`cfg_beta` 1, 1 + `s_max`); the guided times begin at U(0, 0.5) and end at U(0.5, 1). A
# tenth of the labels is dropped. Different here: their transformer is told t - r without t, and has
# eight blocks for the head alone; here the head is an output layer. They drop labels of samples
# with r = t only, and draw a scale for these too; here it is 1.
IMF_TIMES = LogitNormalTimes(prob_equal=0.5, mean=-0.4, std=1.0)
IMF_LOSS = MeanFlowLoss(weight=AdaptiveWeight(p=1.0, c=0.01))
IMF_HEAD = VelocityHead(weight=1.0, every_r=True)
IMF_GUIDANCE = Guidance(max_scale=8.0, scale_power=1.0, random_interval=True, dropout=0.1)


def _imf(base: Experiment) -> Experiment:
    """Improved Mean Flows with classes, and the network, optimiser and steps of ``base``."""
    assert isinstance(base.model, UNetConfig)
    model = replace(base.model, classes=10, guided=True, guided_interval=True, velocity_head=True)
    return replace(
        base,
        model=model,
        times=IMF_TIMES,
        beta=BetaSchedule(value=1.0),
        proxy="head",
        head=IMF_HEAD,
        loss=IMF_LOSS,
        guidance=IMF_GUIDANCE,
    )


# All else, network included, is that of `digits`, `mnist` and `cifar10_cond`; chosen here: there is
# no recipe of iMF for these data. Samples are measured without guidance, a scale of 1.
DIGITS_IMF = _imf(DIGITS)
CIFAR10_IMF = _imf(CIFAR10_CONDITIONAL)

# A baseline that shows how accurate a FID is (Ho et al., arXiv 2006.11239, appendix B, which
# reaches 5.24 against the test images and 3.17 against the training images). It has 1,000 levels,
# Adam with 2e-4 after 5,000 steps of warm-up, batches of 128, 800,000 steps, a moving average of
# 0.9999, mirrored images and dropout 0.1. The network is this project's, not the paper's.
CIFAR10_DDPM = replace(
    CIFAR10_UNCONDITIONAL,
    model=UNetConfig(augmentations=6, dropout=0.1),
    augment=Augmentation(p=0.0, mirror=True),
    times=UniformTimes(prob_equal=1.0),
    loss=DDPM(),
    compute=FAST,
    optim=Optimiser(lr=2e-4, beta1=0.9, beta2=0.999, warmup=5000, final=1.0),
    ema=0.9999,
    ema_every=1,
    batch=128,
    evaluation=Evaluation(
        every=50_000,
        distance=FrechetDistance(extractor="inception", samples=10_000, reference="test"),
        sampler="ddim",
        sampling_steps=100,
    ),
)

# A smaller network of the same family, and the times of arXiv 2505.13447's ImageNet runs. It was
# chosen here: there is no published recipe. Its distance uses a shipped classifier, which needs no
# download; `--set evaluation.distance.extractor=inception` makes it a FID.
MNIST_DIGITS = Experiment(
    data=MNIST(),
    model=UNetConfig(
        channels=64, multipliers=(1, 2, 2), blocks=2, attention=(14,), heads=1, dropout=0.1
    ),
    times=LogitNormalTimes(prob_equal=0.5),
    beta=BetaSchedule(value=1.0),
    proxy="online",
    loss=MeanFlowLoss(weight=AdaptiveWeight(p=0.75, c=1e-3)),
    compute=FAST,
    optim=Optimiser(lr=1e-3, warmup=500),
    ema=0.999,
    batch=256,
    steps=20_000,
    evaluation=Evaluation(
        every=2000, distance=FrechetDistance(extractor="mnist_cnn64_v1", samples=10_000)
    ),
    checkpoint=Checkpoints(every=2000),
)

# Improved Mean Flows, as `digits_imf`.
MNIST_IMF = _imf(MNIST_DIGITS)

# The same network as a DDPM, to compare sampling in many steps with sampling in one step.
MNIST_DDPM = replace(
    MNIST_DIGITS,
    times=UniformTimes(prob_equal=1.0),
    beta=BetaSchedule(value=0.0),
    proxy="ema",
    loss=DDPM(),
    optim=Optimiser(lr=5e-4, warmup=500),
    evaluation=replace(MNIST_DIGITS.evaluation, sampler="ddim", sampling_steps=50),
)

EPOCH = 5004
"""Batches of 256 in ImageNet's 1,281,167 training images, without the last 47."""

# The recipe that the authors of Mean Flows publish for ImageNet 256x256: arXiv 2505.13447, table 4,
# and `configs/default.py`, `configs/run_b4.yml` of their JAX code. Data are latents of
# sd-vae-ft-mse, drawn again each time and scaled by its 0.18215, of images that are scaled and
# cropped as in ADM. The network is a DiT with the inputs t and t - r. r and t are logit-normal
# (-0.4, 1); 3 of 4 samples have r = t. Weights are (l + 0.01)^-1 of a latent's summed error. Labels
# are dropped with probability 0.1. Adam (0.9, 0.95) has a constant 1e-4, without warm-up or decay.
# Batches have 256 samples; the moving average decays by 0.9999 at every step; there are 240 epochs,
# and a FID against the training images every 10 epochs. B/4 is guided with omega = 1 and kappa =
# 0.5 at all times; the authors' reaches a FID of 11.35. Mirror images are encoded too, as in
# zhuyu-cs/MeanFlow, which reaches the paper's FIDs in PyTorch. Chosen here: how often metrics are
# logged and states saved, and 10,000 samples during training instead of 50,000, as each sample is
# decoded. Labels are dropped whatever r is; the JAX code drops those of the batch's first samples,
# which have r = t. So the loss without a class, which evaluation measures, is also trained at r <
# t.
IMAGENET_DIT_B4 = Experiment(
    data=Latents(),
    model=DiTConfig(patch=4, width=768, depth=12, heads=12, classes=1000),
    times=LogitNormalTimes(prob_equal=0.75, mean=-0.4, std=1.0),
    beta=BetaSchedule(value=0.0),
    loss=MeanFlowLoss(weight=AdaptiveWeight(p=1.0, c=0.01)),
    guidance=Guidance(omega=1.0, cfg_kappa=0.5, dropout=0.1),
    compute=FAST,
    optim=Optimiser(lr=1e-4, beta1=0.9, beta2=0.95, warmup=0, final=1.0),
    ema=0.9999,
    batch=256,
    steps=240 * EPOCH,
    log_every=100,
    evaluation=Evaluation(
        every=10 * EPOCH, distance=FrechetDistance(extractor="inception", samples=10_000)
    ),
    checkpoint=Checkpoints(every=EPOCH),
)

# The larger networks of the same table, which reach 6.17, 3.84 and 3.43. L/2 and XL/2 are guided
# with omega = 0.2 and kappa = 0.92, up to a time (also in the commands that zhuyu-cs/MeanFlow
# lists).
IMAGENET_DIT_B2 = replace(
    IMAGENET_DIT_B4,
    model=DiTConfig(patch=2, width=768, depth=12, heads=12, classes=1000),
    compute=IN_PARTS,
)
IMAGENET_DIT_L2 = replace(
    IMAGENET_DIT_B4,
    model=DiTConfig(patch=2, width=1024, depth=24, heads=16, classes=1000),
    compute=IN_PARTS,
    guidance=Guidance(omega=0.2, cfg_kappa=0.92, dropout=0.1, t_max=0.8),
)
IMAGENET_DIT_XL2 = replace(
    IMAGENET_DIT_B4,
    model=DiTConfig(patch=2, width=1152, depth=28, heads=16, classes=1000),
    compute=IN_PARTS,
    guidance=Guidance(omega=0.2, cfg_kappa=0.92, dropout=0.1, t_max=0.75),
)

PRESETS = {
    "digits": DIGITS,
    "digits_imf": DIGITS_IMF,
    "digits_search": DIGITS_SEARCH,
    "toy": TOY,
    "mnist": MNIST_DIGITS,
    "mnist_imf": MNIST_IMF,
    "mnist_ddpm": MNIST_DDPM,
    "cifar10": CIFAR10_UNCONDITIONAL,
    "cifar10_cond": CIFAR10_CONDITIONAL,
    "cifar10_imf": CIFAR10_IMF,
    "cifar10_short": CIFAR10_SHORT,
    "cifar10_short_cond": CIFAR10_SHORT_CONDITIONAL,
    "cifar10_25min": CIFAR10_25MIN,
    "cifar10_ddpm": CIFAR10_DDPM,
    "imagenet_dit_b4": IMAGENET_DIT_B4,
    "imagenet_dit_b2": IMAGENET_DIT_B2,
    "imagenet_dit_l2": IMAGENET_DIT_L2,
    "imagenet_dit_xl2": IMAGENET_DIT_XL2,
}


def preset(name: str) -> Experiment:
    """The experiment of that name: one of ``PRESETS``, ``module:NAME`` or ``path/file.py:NAME``.

    Raises ValueError if there is none.
    """
    if not user_modules.is_user_name(name):
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{serialization.nearest(name, PRESETS)}")
        return PRESETS[name]
    found = user_modules.load(name)
    if not isinstance(found, Experiment):
        raise ValueError(f"{name} must be a vamf.Experiment; got {found!r:.80}")
    return found
