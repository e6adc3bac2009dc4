"""A search for beta: trials that Optuna suggests and Ray Tune runs."""
