"""Configs at the size of pods, to be compiled by `tpu.aot` and trained where there is a pod."""
