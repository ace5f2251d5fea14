"""Refitting layers to their old outputs."""
