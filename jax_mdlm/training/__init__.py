"""Training: optimizer, state, step, checkpoint, metrics."""
