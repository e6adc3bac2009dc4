"""vamf: variance-aware Mean Flows. Train one-step generative models, and find their beta."""
