"""Finding the layers where a file departs from its model."""
