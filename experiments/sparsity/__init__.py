"""Recipes on sparse activations."""
