"""Connects to a Ray cluster and checks its nodes' capacity and storage."""
