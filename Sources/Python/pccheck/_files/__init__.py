"""Checkpoint files of a job: where they are, their shape, copies of what they hold."""
