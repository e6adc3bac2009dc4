"""Checkpoints: written in the background, checked when read, fetched from object stores."""
