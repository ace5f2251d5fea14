"""What is held while a model trains."""
