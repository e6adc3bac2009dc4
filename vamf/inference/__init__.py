"""Uses trained networks: loading, measuring, sampling, export and serving."""
