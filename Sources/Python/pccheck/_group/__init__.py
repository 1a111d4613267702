"""How the ranks of a job agree on checkpoints: spec/GROUP.md. The public module is distributed."""
