"""Runs of an experiment: a teacher, a compressed student, its scores."""
