"""Configs of the distillation experiments."""
