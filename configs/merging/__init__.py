"""Configs of the merging experiments."""
