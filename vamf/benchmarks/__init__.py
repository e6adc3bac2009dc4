"""Measures how long steps, starts and evaluations take on this machine."""
