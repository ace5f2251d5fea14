"""Explaining files that other programs made."""
