"""One training step: objective, networks, optimiser, precision, CUDA graph."""
