"""JAX: its arrays over several processes, and the network of a group over its coordination."""
