"""Checkpoints: our own format, and readers of others."""
