"""Experiments: one folder a question, each run as a module from the root of the repository."""
