"""Pods from a laptop: compile any config for TPUs that are not there, launch on those that are."""
