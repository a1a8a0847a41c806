"""Representation learning research in pure JAX."""
