"""Benchmarks: ours beside the peer a user would pick instead, the same work in one run."""
