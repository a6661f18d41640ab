"""Reward models: what a translation is worth, without or with a reference."""
