"""What is wrong with a file of another format."""

from __future__ import annotations

from ..errors import CheckpointError


class DamagedInput(CheckpointError):
    """A file of another format breaks the rules of that format: truncated, or damaged."""


class NotTrusted(CheckpointError):
    """A pickle asks for more than tensors and plain values: to read it is to run its program."""


class UnknownInput(CheckpointError):
    """No format that is known."""
