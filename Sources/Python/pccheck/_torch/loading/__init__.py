"""From stored tensors to torch objects."""
