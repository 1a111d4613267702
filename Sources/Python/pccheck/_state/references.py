"""What a state document names: its tensors and its parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import CheckpointError

REFERENCES = ("$tensor", "$array", "$view")
#: How many names a message lists.
LISTED_NAME_COUNT = 8


def tag_of(node: dict[str, Any]) -> str:
    """The tag of a node; empty for a plain dictionary."""
    first = next(iter(node), "")
    return first if first.startswith("$") else ""


def references(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stored tensors that a document names, each with the node that names it."""
    pending = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            tag = tag_of(node)
            content = node.get(tag)
            if tag in REFERENCES and isinstance(content, str):
                yield content, node
            elif tag in ("$bytes", "$bytearray"):
                if isinstance(content, dict) and isinstance(content.get("tensor"), str):
                    yield content["tensor"], node
            else:
                pending += node.values()


def reference_to(name: str, document: Any) -> Any:
    """The node that names one tensor."""
    names = []
    for found, node in references(document):
        if found == name:
            return node
        names.append(found)
    shown = ", ".join(sorted(names)[:LISTED_NAME_COUNT]) or "none"
    more = ", …" if len(names) > LISTED_NAME_COUNT else ""
    raise CheckpointError(
        f"tensor '{name}' is not in the checkpoint, which holds {len(names)} tensors: "
        f"{shown}{more}"
    )


def part_of(loaded: Any, name: str) -> Any:
    """A named part of a loaded state, or of its document."""
    if not isinstance(loaded, dict) or name not in loaded:
        held = ", ".join(loaded) if isinstance(loaded, dict) else type(loaded).__qualname__
        raise CheckpointError(f"'{name}' is not in the checkpoint, which holds: {held}")
    return loaded[name]
