"""Reproduces the tables of arXiv 2605.09235 on points, with standard errors and floors."""
