"""Hydra: any pair of classes as positives."""
