"""Preserving attribution maps while a model trains."""
