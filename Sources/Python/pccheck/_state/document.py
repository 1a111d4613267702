"""The state document as text: its JSON form, and its version."""

from __future__ import annotations

import json
from typing import Any

from ..errors import StateFormatError, UnsupportedState
from .refusing import refuse_pairs

#: Key of the document in the safetensors ``__metadata__``.
DOCUMENT_KEY = "pccheck.state"
VERSION = 1


def document_text(root: Any) -> str:
    """The text that is stored: ASCII, so that every string survives any UTF-8 handling."""
    text = json.dumps({"version": VERSION, "state": root}, allow_nan=False, separators=(",", ":"))
    refuse_pairs(root, text)
    return text


def parse_document(text: str) -> Any:
    """The root of a stored document."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"the state document is not JSON: {error}") from None
    if not isinstance(document, dict) or "state" not in document:
        raise StateFormatError(
            "the state document has no 'state'; was the file written by pccheck?"
        )
    version = document.get("version")
    if type(version) is not int:
        raise StateFormatError(f"the state document has the version {version!r}, no number")
    if version != VERSION:
        raise UnsupportedState(
            f"the state document has version {version!r}; this package reads {VERSION}: install "
            "a newer pccheck"
        )
    return document["state"]
