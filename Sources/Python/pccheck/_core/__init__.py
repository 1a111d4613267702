"""The native library, and what every checkpointer does with it."""
