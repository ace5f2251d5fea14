"""Which tensors of a file belong to which layers, and their values."""
