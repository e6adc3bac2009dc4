"""Measurements of the variance of the objective and of its gradient."""
