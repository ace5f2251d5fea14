"""Experiments with keras_attr_preserve, one binary each."""
