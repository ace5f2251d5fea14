"""What the experiment binaries share."""
