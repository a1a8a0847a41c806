"""Pods from a laptop: compile any config for TPUs or GPUs that are not there, launch on TPUs."""
