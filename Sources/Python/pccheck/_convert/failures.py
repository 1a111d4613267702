"""What is wrong with a file of another format."""

from __future__ import annotations

from ..errors import CheckpointError, NotTrusted

__all__ = ["DamagedInput", "NotTrusted", "UnknownInput"]


class DamagedInput(CheckpointError):
    """A file of another format breaks the rules of that format: truncated, or damaged."""


class UnknownInput(CheckpointError):
    """No format that is known."""
