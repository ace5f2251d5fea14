"""Measures the cost of a train step and of an attribution map."""
