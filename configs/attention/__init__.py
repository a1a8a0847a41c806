"""Configs of the attention experiments."""
