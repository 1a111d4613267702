"""What ranks claim about the tensors that they hold alike, and whether the claims agree.

A tensor that several ranks hold is stored once. If it is not the same on all of them, the parts of
it that they store do not fit together. So each rank claims what it holds; a mismatch makes the save
void. Each file keeps digests of the claims of its rank: a restart compares them again, because the
ranks may have died before they compared.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ..errors import StateFormatError

_VERSION = 1
_SHOWN_COUNT = 4
# A longer form of a value is claimed by its digest.
_FORM_LENGTH = 120


#: The ranks that hold something together, and the digest of what one of them claims of it.
Digests: TypeAlias = list[list[Any]]


class Claims:
    """What one rank claims, by name of a tensor or value, and of the part of it where that is not
    all."""

    def __init__(self) -> None:
        self._claims: dict[str, list[Any]] = {}

    def add(self, name: str, ranks: Iterable[int], form: str, values: bytes = b"") -> None:
        """`ranks` are those that hold the same; `form` is the type and shape of a tensor, or
        another value; `values` is a sample of a tensor."""
        sample = _digest(values) if values else ""
        if len(form) > _FORM_LENGTH:
            form = f"a value with the digest {_digest(form.encode())}"
        self._claims[name] = [list(ranks), form, sample]

    def digests(self) -> Digests:
        """What is kept of them: one digest for the claims on the same ranks."""
        by_ranks: dict[tuple[int, ...], list[Any]] = {}
        for name, (ranks, form, sample) in sorted(self._claims.items()):
            if len(ranks) > 1:
                by_ranks.setdefault(tuple(ranks), []).append([name, form, sample])
        return [[list(ranks), digest_of(claims).hex()] for ranks, claims in by_ranks.items()]

    def encoded(self) -> bytes:
        """As they are sent to the other ranks."""
        return zlib.compress(json.dumps([_VERSION, self._claims]).encode(), 1)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def compare(claims: Mapping[int, bytes]) -> str | None:
    """Nothing when the claims of all ranks agree, else a message with part, tensor and ranks.

    ``claims`` are those that arrived, by rank. A rank that did not send any is not compared. Two
    ranks that claim one name must hold the same, also where neither knows of the other.
    """
    held: dict[str, dict[int, list[Any]]] = {}
    for rank, content in sorted(claims.items()):
        for name, claim in _decoded(rank, content).items():
            held.setdefault(name, {})[rank] = claim
    messages = [
        message for name, found in held.items()
        if (message := _difference(name, found, claims.keys())) is not None
    ]  # fmt: skip
    if not messages:
        return None
    shown = "; ".join(messages[:_SHOWN_COUNT])
    more = f"; and {len(messages) - _SHOWN_COUNT} more" if len(messages) > _SHOWN_COUNT else ""
    return (
        f"the ranks do not hold the same: {shown}{more}. Make them equal, give what differs a name "
        "of its own, or declare the part as each rank's own"
    )


def _decoded(rank: int, content: bytes) -> dict[str, list[Any]]:
    try:
        version, claims = json.loads(zlib.decompress(content))
        if version == _VERSION:
            return {
                str(name): [set(ranks), str(form), str(sample)]
                for name, (ranks, form, sample) in claims.items()
            }
    except (zlib.error, ValueError, TypeError, AttributeError) as error:
        raise StateFormatError(f"the claims of rank {rank} are damaged: {error}") from None
    raise StateFormatError(
        f"rank {rank} claims in version {version}, expected {_VERSION}; install one release of "
        "pccheck on all ranks"
    )


def _difference(name: str, held: Mapping[int, list[Any]], arrived: Iterable[int]) -> str | None:
    """Who has it, in which form, with which values."""
    expected = set().union(*(ranks for ranks, _, _ in held.values()))
    without = (expected & set(arrived)) - held.keys()
    if without:
        return f"'{name}' is on {ranks_in_words(held)} and not on {ranks_in_words(without)}"
    forms: dict[str, list[int]] = {}
    samples: dict[str, list[int]] = {}
    for rank, (_, form, sample) in held.items():
        forms.setdefault(form, []).append(rank)
        samples.setdefault(sample, []).append(rank)
    if len(forms) > 1:
        found = (f"{form} on {ranks_in_words(ranks)}" for form, ranks in forms.items())
        return f"'{name}' is " + ", ".join(found)
    if len(samples) > 1:
        groups = " than on ".join(map(ranks_in_words, samples.values()))
        return f"'{name}' has other values on {groups}"
    return None


def compare_digests(digests: Mapping[int, Digests]) -> str | None:
    """Nothing when the ranks claimed the same, else a message; of each rank what its file kept."""
    expected: dict[tuple[int, ...], dict[int, str]] = {}
    for rank, found in sorted(digests.items()):
        for ranks, digest in found:
            expected.setdefault(tuple(ranks), {})[rank] = digest
    for ranks, by_rank in expected.items():
        said = {rank: by_rank.get(rank, "nothing") for rank in ranks if rank in digests}
        groups: dict[str, list[int]] = {}
        for rank, digest in said.items():
            groups.setdefault(digest, []).append(rank)
        if len(groups) > 1:
            return (
                "it is void: the ranks did not hold the same when they saved it: "
                + " held other values than ".join(map(ranks_in_words, groups.values()))
            )
    return None


def ranks_in_words(ranks: Iterable[int]) -> str:
    """Such as ``ranks 0 to 3``, ``rank 5``."""
    found = sorted(ranks)
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"ranks {found[0]} to {found[-1]}"
    return ("ranks " if len(found) > 1 else "rank ") + ", ".join(map(str, found))


def digest_of(structure: Any) -> bytes:
    """Sixteen bytes that stand for a nest of names and numbers."""
    text = json.dumps(structure, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
