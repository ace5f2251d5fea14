"""What a train step and a map cost."""
