"""The command line: the launcher, the registry, claims, reports; and one recipe a file by area."""
