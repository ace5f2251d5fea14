"""Shared helpers: checks, progress, drawings, writing whole files."""
