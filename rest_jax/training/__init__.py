"""Training: optimiser, state, one update, and the loop."""
