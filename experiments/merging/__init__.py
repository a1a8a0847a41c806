"""Recipes of merging: models in the space of their parameters."""
