"""Recipes on attention."""
