"""The private and unstable names of dependencies that vamf uses: a module for each dependency.

Each function uses one of them and imports it lazily. A test for each fails once an upgrade of the
dependency takes the name away.
"""
