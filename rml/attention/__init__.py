"""Attention: random-feature attention, its kernel limit, and approximations of softmax."""
