"""Variances of the objective and of its gradient."""
