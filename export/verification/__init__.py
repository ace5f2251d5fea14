"""Holding a file against the model it was made from."""
