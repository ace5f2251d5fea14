"""Converts a model to a .tflite file."""
