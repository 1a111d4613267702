"""Checkpoints of other formats: how each is read into a ``.pcc`` file, and written again.

One module for a format. None imports torch before a format that is torch's own is asked for.
"""
