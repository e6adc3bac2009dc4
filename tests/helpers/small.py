"""A reproduction small enough for tests, and a made-up result."""

from dataclasses import replace

from vamf.metrics.distances import SlicedWasserstein
from vamf.reproduction.protocol import Protocol
from vamf.reproduction.results import Result

SMALL = Protocol(
    sets=("two_moons", "dgmm_4_redrawn"),
    betas=(0.0, 1.0),
    seeds=(42, 0),
    steps=12,
    trace_every=4,
    distance=SlicedWasserstein(samples=64, directions=8, repetitions=2),
)

RESULT = Result(
    set="two_moons",
    betas=[0.0, 0.5, 1.0],
    seeds=[42, 0, 1],
    sw1=[[0.30, 0.20, 0.31], [0.40, 0.31, 0.39], [0.50, 0.39, 0.52]],
    sw2=[[0.5, 0.6, float("nan")], [0.5, 0.7, 0.5], [0.5, 0.8, 0.5]],
    repetition_error=[0.01, 0.02],
    trace=[[4.0, 2.0, 1.0], [8.0, 4.0, 2.0], [6.0, 3.0, 1.5]],
    traces=[],
    trace_steps=[],
    floor=[[0.04, 0.002], [0.06, 0.003]],
    lost=[[42, 2, 17]],
    seconds=12.0,
    together=2,
    device="a machine",
    torch="2.11",
    experiment=replace(SMALL, steps=100).experiment("two_moons").to_dict(),
    command="python -m jobs.reproduce",
)
