"""Sampling and search; know neither the model nor the tokenizer."""
