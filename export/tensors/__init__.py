"""Finds the tensors of a file that belong to layers, and their values."""
