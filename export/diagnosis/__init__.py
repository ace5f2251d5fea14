"""Finds the layers where a file differs from its model."""
