"""How the ranks of a job divide a state among their files, and agree on checkpoints."""
