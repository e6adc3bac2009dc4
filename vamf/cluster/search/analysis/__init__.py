"""Analyses a search from its files, without Ray."""
