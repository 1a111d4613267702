"""The state document as text: its JSON form, and its version."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ..errors import StateFormatError, UnsupportedState
from .refusing import refuse_pairs

#: Key of the document in the safetensors ``__metadata__``.
DOCUMENT_KEY = "pccheck.state"
VERSION = 1


def document_text(root: Any) -> str:
    """The text that is stored: ASCII, so that every string survives any UTF-8 handling."""
    return node_text({"version": VERSION, "state": root})


def text_with_parts(root: Any, parts: Sequence[str]) -> str:
    """As ``document_text``; each text in ``parts`` replaces the ``part_node`` of its index."""
    return _PART.sub(lambda found: parts[int(found[1])], document_text(root))


def part_node(index: int) -> dict[str, Any]:
    """A node that stands for a part whose text is made apart from the rest.

    No other text is taken for it: states have no keys that begin with ``$``, and in a string each
    quote comes after a backslash.
    """
    return {"$part": index}


_PART = re.compile(r'\{"\$part":(\d+)\}')


def node_text(node: Any) -> str:
    """The text of a node of a document."""
    text = json.dumps(node, allow_nan=False, separators=(",", ":"))
    refuse_pairs(node, text)
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
