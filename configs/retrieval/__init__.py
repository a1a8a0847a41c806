"""Configs of retrieval experiments."""
