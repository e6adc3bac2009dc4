"""Named experiments."""

from dataclasses import replace

from vamf.data.images import Digits
from vamf.data.toys import Toy
from vamf.diagnostics.probe import Probe
from vamf.experiment import Checkpoints, Evaluation, Experiment, Optimiser
from vamf.flow.losses import AdaptiveWeight, MeanFlowLoss
from vamf.flow.schedules import BetaSchedule
from vamf.flow.times import LogitNormalTimes, UniformTimes
from vamf.metrics.distances import FrechetDistance, SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig

# The tangent of improved Mean Flows: on these data beta = 1 ends nearest to the real images.
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

# As much of it as a search on two cores affords for each trial.
DIGITS_SEARCH = replace(
    DIGITS,
    ema=0.98,
    steps=400,
    evaluation=Evaluation(every=400, distance=FrechetDistance()),
    checkpoint=Checkpoints(every=200, keep=1),
    probe=Probe(every=400, pairs=4, bins=3, weighted=True),
)

# The protocol of arXiv 2605.09235 for points, sampled at the largest gap that is trained.
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

PRESETS = {"digits": DIGITS, "digits_search": DIGITS_SEARCH, "toy": TOY}
