"""Configs of contrastive pretraining."""
