"""Runs a .tflite file safely and measures its cost."""
