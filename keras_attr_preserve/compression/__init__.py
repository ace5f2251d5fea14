"""Taking weights and filters away, and preparing a model for 8 bits."""
