"""Training: optimizers and schedules, checkpoints, resuming, checks before and during a run."""
