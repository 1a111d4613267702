"""What one rank stores of a state that it holds with others, and how its file describes that."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgument, StateFormatError
from .claims import Claims, Digests

#: Key of the description of a rank's part in the ``__metadata__`` of a payload.
GROUP_KEY = "pccheck.group"
_VERSION = 1


@dataclass(frozen=True)
class Division:
    """What this rank stores of a state."""

    #: The state, with what is divided in the form that the encoder stores.
    parts: dict[str, Any]
    metadata: dict[str, str]
    #: Changes when names, shapes, types, placements or the plan change on this rank.
    structure: bytes
    #: For the other ranks to compare; None unless asked for.
    claims: bytes | None
    #: Bytes that this rank stores of what it holds with others, of one that it would store alone.
    share: float


def is_split(replicas: str) -> bool:
    """Whether ranks divide what they hold alike. Raises ``InvalidArgument``."""
    if replicas not in ("split", "whole"):
        raise InvalidArgument(f"replicas is {replicas!r}; give 'split' or 'whole'")
    return replicas == "split"


def group_metadata(
    rank: int, world_size: int, replicas: str, parts: Iterable[str], shared: set[str],
    claims: Claims | None,
) -> dict[str, str]:  # fmt: skip
    """The description of a rank's part."""
    names = list(parts)
    record: dict[str, Any] = {
        "version": _VERSION, "rank": rank, "world": world_size, "replicas": replicas,
        "shared": [name for name in names if name in shared],
        "own": [name for name in names if name not in shared],
    }  # fmt: skip
    if claims is not None:
        record["claims"] = claims.digests()
    return {GROUP_KEY: json.dumps(record, separators=(",", ":"))}


def claims_in(record: str | None) -> Digests | None:
    """The digests of claims in the description of a rank's part; None where none were made."""
    try:
        found = json.loads(record or "{}").get("claims")
        if found is None:
            return None
        return [[[int(rank) for rank in ranks], str(digest)] for ranks, digest in found]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StateFormatError(f"the description of a rank's part is damaged: {error}") from None
