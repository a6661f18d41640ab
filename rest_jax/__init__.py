"""Reinforced Self-Training (ReST) of translation models in JAX."""

__version__ = '0.1.0'
