"""Starts a run from the weights of another one, of an exported file or of another project."""
