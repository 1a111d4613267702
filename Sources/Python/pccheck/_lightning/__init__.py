"""The checkpointers behind the adapter of Lightning."""
