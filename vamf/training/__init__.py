"""One run on one or many workers: objective, steps, evaluation, checkpoints. Needs torch only."""
