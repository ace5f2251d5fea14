"""Refitting layers to what they computed before."""
