"""One tracked run, on any number of Ray Train workers."""
