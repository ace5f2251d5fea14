"""Keras models: reading, running, taking apart, and saving them."""
