"""Experiments on retrieval of text."""
