"""Ray: training on many workers, searches, and jobs on a remote cluster."""

import os

# Read when Ray is imported. Without the first, `uv run` makes each worker build the environment.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Version 1 of Ray Train lacks what is used here.
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
