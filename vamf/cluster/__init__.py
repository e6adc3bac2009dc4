"""Ray: training on many workers, searches, and jobs on a remote cluster."""

import os

# Read when Ray is imported. The first: `uv run` would have every worker build the environment anew.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Its former version knows nothing of what is used here.
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
