"""Configs of the deep kernel machine experiments."""
