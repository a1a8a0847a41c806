"""Configs of the experiments of metric learning."""
