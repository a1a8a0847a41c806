"""Recipes of contrastive pretraining: SimCLR, MoCo v2 and v3, SupCon."""
