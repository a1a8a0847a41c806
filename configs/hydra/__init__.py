"""Configs of the Hydra experiments."""
