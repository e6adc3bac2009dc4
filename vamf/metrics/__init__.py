"""Distances between generated samples and data: Fréchet on features, sliced Wasserstein."""
