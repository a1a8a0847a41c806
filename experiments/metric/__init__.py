"""Recipes of metric learning: classes that were never trained on."""
