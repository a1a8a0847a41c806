"""Configs of the sparsity experiments."""
