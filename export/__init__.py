"""Shipping a model to TFLite with its attribution on board, and proving it."""
