"""The mathematics of Mean Flows: paths, times, tangents, losses, samplers. Needs torch only."""
