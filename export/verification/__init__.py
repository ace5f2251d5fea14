"""Compares a file with its Keras model."""
