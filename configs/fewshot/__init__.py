"""Configs of the few-shot experiments."""
