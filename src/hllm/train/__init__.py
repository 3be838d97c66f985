"""Training: optimiser, schedule, weight averaging, checkpoints, and the loop."""
