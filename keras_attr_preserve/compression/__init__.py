"""Removing weights and filters, and preparing a model for 8 bits."""
