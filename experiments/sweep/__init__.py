"""Sweeps: all combinations of a grid, several seeds each, launched, continued, joined, drawn.

`plan` makes runs of a grid, `table` joins what they measured, `slurm` hands them to a cluster.
"""
