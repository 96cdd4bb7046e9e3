"""How a model is trained: optimizers and schedules, checkpoints, resuming, checks before and during a run."""
