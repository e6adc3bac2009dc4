"""The fast path: groups of a network's operations, with tangents, as a few kernels each."""
