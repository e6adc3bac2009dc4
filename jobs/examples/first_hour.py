# %% [markdown]
# # The first hour with vamf
#
# Train a one-step generator of handwritten digits, look at what it draws, measure how beta changes
# its loss and gradient, and search for the best beta. No GPU is needed.
#
# Each `# %%` begins a cell: VS Code opens this file as a notebook, and Jupyter does with jupytext.
# `python jobs/examples/first_hour.py` runs all of it, and leaves the pictures in `FOLDER`.

# %%
from pathlib import Path

import torch
from PIL import Image

import vamf
from vamf.diagnostics.probe import Probe
from vamf.inference.load import load_trainer
from vamf.rng import generator
from vamf.training.landscape_report import describe_landscape, plot_landscape
from vamf.training.pictures import save_picture

# %% [markdown]
# ## The budget
#
# 400 steps are what a search on two CPU cores can afford for each network. The preset `digits`
# takes 4,000, and draws better digits.

# %%
SETTINGS = {"steps": 400}  # any fields of the experiment, by dotted name
TRIALS = 6  # values of beta that the search tries
SEEDS = 2  # trainings for each value; differences are tested from two on
PAIRS = 4  # pairs of batches that measure a landscape
FOLDER = Path("runs/first_hour")  # new: nothing is overwritten

EXPERIMENT = vamf.PRESETS["digits_search"].override(SETTINGS)


# %%
def show(image: Image.Image, name: str) -> Image.Image:
    """Writes a picture into the folder, and returns it, as a notebook shows what a cell returns."""
    image.save(FOLDER / f"{name}.png")
    return image


# %% [markdown]
# ## Real digits
#
# 1,347 images of 8x8 pixels. The generator with its seed makes the draw repeatable.

# %%
real = EXPERIMENT.data.load("train").draw(64, generator(0, "real digits"))
save_picture(real, FOLDER / "real.png")
Image.open(FOLDER / "real.png")

# %% [markdown]
# ## Train, and draw
#
# `eval/fd_...` is the distance of one-step samples to real digits: smaller is better. Then come the
# variances of the loss and of its gradient, and what the preset's own probe says about beta, which
# a cell below explains. ± is the error of one evaluation.

# %%
run = vamf.train(EXPERIMENT, directory=FOLDER / "digits")
for metric, value in run.metrics.items():
    print(f"{metric:44} {value}")

# %% [markdown]
# 64 digits, each from noise by one evaluation of the network. `sample` gives the tensors.

# %%
show(run.load().grid(), "samples")

# %% [markdown]
# ## The landscape
#
# Loss and gradient are affine in beta, so one set of draws gives their variance at every beta for
# the weights as they are now. `beta_star/gradient/mse` is where the gradient's squared error is
# smallest. It describes this network; which beta trains a better one is what a search finds out.

# %%
trainer = load_trainer(run.directory, torch.device("cpu"), {})
landscape = trainer.probe(Probe(pairs=PAIRS))
print(describe_landscape(landscape))

# %%
plot_landscape(landscape, FOLDER / "landscape.png")
Image.open(FOLDER / "landscape.png")

# %% [markdown]
# ## Search
#
# Ray Tune runs the trials side by side, Optuna suggests the values of beta; 0 and 1 come first.
# A search that was interrupted continues by `vamf tune --resume FOLDER/search`.

# %%
search = vamf.tune(
    "constant", experiment=EXPERIMENT, trials=TRIALS, seeds=SEEDS, directory=FOLDER / "search"
)

# %% [markdown]
# ## The verdict
#
# Rows with a star are on the Pareto front of loss variance and distance. The column against beta =
# 0 says of each beta whether it is better, worse, or cannot be told apart from Mean Flows.

# %%
print(search)

# %%
print(search.to_pandas().to_string())

# %%
if (fit := search.results.smooth) is not None:  # from four different betas on
    low, high = fit.interval
    print(f"the distance is lowest at beta = {fit.best:.2f}, 95 % [{low:.2f}, {high:.2f}]")
Image.open(search.directory / "pareto.png")
