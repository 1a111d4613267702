"""What is particular to torch."""
