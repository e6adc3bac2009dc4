"""What the presets, search spaces and programs are, in a line each; imports nothing."""

PROGRAMS = {
    "train": "trains a preset, or continues a run",
    "tune": "searches beta by many trainings, or continues a search",
    "evaluate": "measures a checkpoint, or a folder of images; --check checks the FID",
    "compare": "compares runs and searches: a table with errors and verdicts, a plot, samples",
    "sample": "draws samples from a checkpoint",
    "export": "writes a checkpoint for use elsewhere",
    "encode": "encodes images, for training on latents",
    "couple": "makes pairs of noise and samples of a flow, to train on: rectified couplings",
    "probe": "measures the beta landscape of a checkpoint",
    "reproduce": "trains for the tables of arXiv 2605.09235 on points",
    "bench": "measures what training costs on this machine",
    "clock": "times every objective, and writes a search in which each trains equally long",
    "submit": "runs one of these on a Ray cluster",
    "resend": "sends to MLflow what it missed while it did not answer",
}

PRESETS = {
    "digits": "scikit-learn's 8x8 digits, U-Net of 0.2 M: minutes on a CPU; distance 0.59",
    "digits_imf": "the same with classes by improved Mean Flows, told scale and times of guidance",
    "digits_search": "the same in 400 steps, as a search on two CPU cores affords each trial",
    "toy": "points in the plane (--data.name), MLP of 0.04 M: a minute on a CPU",
    "mnist": "MNIST, U-Net of 7 M: 6 minutes on an H200; distance 0.47, real 0.02, noise 379",
    "mnist_imf": "the same with classes by improved Mean Flows",
    "mnist_ddpm": "the same network as a DDPM: 3 minutes; distance 0.22 with 50 steps of DDIM",
    "cifar10": "CIFAR-10, U-Net of 56 M, Mean Flows' own recipe: 44 GiB, in 4 micro-batches 12",
    "cifar10_cond": "the same with classes and guidance",
    "cifar10_imf": "the same by improved Mean Flows",
    "cifar10_short": "the same U-Net without labels: two minutes on an H200, 8 GiB; distance 5.6",
    "cifar10_short_cond": "the same, told classes and guided in the target: 145 s; distance 2.7",
    "cifar10_25min": "the same for 20,000 steps: 22 minutes, 12 GiB; distance 0.47",
    "cifar10_ddpm": "the same network as a DDPM, batch 128: a GPU",
    "imagenet_dit_b4": "latents of ImageNet (jobs.encode), DiT-B/4 of 131 M, their recipe: 8 GiB",
    "imagenet_dit_b2": "the same with DiT-B/2 of 131 M",
    "imagenet_dit_l2": "the same with DiT-L/2 of 459 M",
    "imagenet_dit_xl2": "the same with DiT-XL/2 of 676 M: 112 GiB, in 4 micro-batches 34",
}

SPACES = {
    "constant": "beta, constant over training, in [0, 1]",
    "schedules": "beta that moves in training: shape, start, end and arrival",
    "of_time": "beta as a function of the time t",
    "recipe": "beta, proxy, share of r = t and learning rate",
    "objective": "MeanFlow or alpha-Flow, beta and the power of the adaptive weight",
    "guided": "beta and the guidance in the target, of networks with classes",
}
