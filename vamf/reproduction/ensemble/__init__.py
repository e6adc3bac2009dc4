"""Trains many small networks, one for each (seed, beta), as one program."""
