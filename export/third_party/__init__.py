"""Explains files that other programs made."""
