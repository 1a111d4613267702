"""One view of the files that the ranks of a world saved of one step.

The state documents are merged: what is divided among the files is joined, and what each rank stored
whole is either this rank's own, or has to be the same in all files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np

from .._core.reader import CheckpointInfo, Reader
from .._core.tensors import DevicePlace
from .._state.comparing import GONE, SEQUENCE_TAGS, items_of, with_items
from .._state.manifest import Manifest
from .._state.nesting import joined
from .._state.references import REFERENCES, references, tag_of
from .._state.stored import StoredTensor
from ..errors import CheckpointError, StateFormatError
from .boxes import Box
from .node import TAG, ShardedNode
from .optimizers import with_common_numbers

# The file of a tensor is in the upper bits of its offset; a payload is shorter.
_FILE_SHIFT = 48
#: The part with the global random generators.
RANDOM_PART = "rng"
# What is compared at once of tensors that every rank stored.
_COMPARED_BYTE_COUNT = 16 << 20
_Nodes: TypeAlias = Mapping[int, Any]


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor by the boxes that the files hold of it; takes the place of a node's content."""

    path: str
    shape: tuple[int, ...]
    #: Name of torch's type.
    dtype: str
    #: The ranks that stored it together.
    ranks: tuple[int, ...]
    #: Each box with the rank whose file holds it and the node in that file; own ones first.
    boxes: tuple[tuple[Box, int, Any], ...]
    #: How one of the ranks had placed it; None for replicas.
    placement: dict[str, Any] | None


@dataclass(frozen=True)
class Conflict:
    """What each rank stored for itself, and is not the same in all files."""

    path: str
    #: Where exactly the first difference is.
    where: str
    #: Ranks with equal values together.
    ranks: tuple[tuple[int, ...], ...]


@dataclass
class JoinedManifest:
    """What the files hold together; has the attributes of a ``Manifest``."""

    document: Any
    objects: str | None
    conflicts: list[Conflict]
    _tensors: dict[str, StoredTensor] = field(default_factory=dict)
    #: Key paths that some ranks had and others did not, as the stages of a pipeline do.
    partial: set[str] = field(default_factory=set)

    def tensors_of(self, document: Any) -> dict[str, StoredTensor]:
        """The tensors that a document names outside of joined ones, in the order of the files."""
        names = {name for name, _ in references(document)}
        found = [self._tensors[name] for name in names]
        return {item.name: item for item in sorted(found, key=lambda item: item.payload_offset)}


class Assembly:
    """The files of one world at one step; reads as one reader.

    The caller has selected the checkpoint in each reader, and closes them.
    """

    def __init__(
        self, readers: Mapping[int, Reader], world_size: int, rank: int | None,
        paths: Mapping[int, str] | None = None, *,
        first_parts: frozenset[str] | None = frozenset(),
    ) -> None:  # fmt: skip
        """`readers` are those of the ranks of the world that saved, as many as can be read.

        `rank` is this rank where that world is the present one: what a rank stored for itself
        comes from its own file. In `first_parts` it comes from the first file, without a
        comparison; None stands for all parts.
        """
        if not readers:
            raise CheckpointError("there is no file to load from")
        self.world_size = world_size
        self.readers = dict(sorted(readers.items(), key=lambda item: (item[0] != rank, item[0])))
        self._paths = paths or {}
        self._manifests: dict[int, Manifest] = {}
        for number, reader in self.readers.items():
            with self.blamed_on(number):
                self._manifests[number] = Manifest(reader)
        self._ranks = list(self.readers)
        self._is_own_world = self._ranks[0] == rank
        self._first_parts = first_parts

    @property
    def missing_ranks(self) -> list[int]:
        """The ranks of the world whose files are not here."""
        return [rank for rank in range(self.world_size) if rank not in self.readers]

    @contextmanager
    def blamed_on(self, rank: int) -> Iterator[None]:
        """While the file of a rank is read: an error names it."""
        try:
            yield
        except CheckpointError as error:
            if error.rank is None:
                error.rank = rank
                where = self._paths.get(rank, f"the file of rank {rank}")
                if where not in str(error):
                    error.reword(f"{where}: {error}")
            raise

    # -- as a reader

    def read(
        self,
        parts: Sequence[tuple[int, int, int]],
        devices: Sequence[DevicePlace | None] = (),
    ) -> None:
        """Reads verified parts of the payloads, as ``Reader.read`` does of one."""
        by_rank: dict[int, list[tuple[tuple[int, int, int], DevicePlace | None]]] = {}
        for (offset, byte_count, address), device in zip_longest(parts, devices):
            rank = self._ranks[offset >> _FILE_SHIFT]
            row = (offset & ((1 << _FILE_SHIFT) - 1), byte_count, address)
            by_rank.setdefault(rank, []).append((row, device))
        for rank, rows in by_rank.items():
            with self.blamed_on(rank):
                self.readers[rank].read([row for row, _ in rows], [place for _, place in rows])

    def list(self) -> list[CheckpointInfo]:
        """The checkpoints of the file that has most of them."""
        return max((reader.list() for reader in self.readers.values()), key=len)

    def verify(self) -> None:
        """Verifies the selected checkpoints completely."""
        for rank, reader in self.readers.items():
            with self.blamed_on(rank):
                reader.verify()

    def stored(self, rank: int, name: str) -> StoredTensor:
        """A tensor in the file of a rank; its offset is that in this file."""
        with self.blamed_on(rank):
            return self._manifests[rank].tensor(name)

    def payload_byte_count(self, rank: int) -> int:
        """How long the payload of a rank's checkpoint is."""
        return self._manifests[rank].payload_byte_count

    # -- merging

    def manifest(self, parts: Iterable[str] | None = None) -> JoinedManifest:
        """The joined document of some parts, or of all."""
        documents = {rank: item.document for rank, item in self._manifests.items()}
        merging = _Merging(self, documents, parts)
        first = documents[self._ranks[0]]
        objects = self._manifests[self._ranks[0]].objects
        if any(not isinstance(item, dict) or tag_of(item) for item in documents.values()):
            document = merging.merged(documents, "")
            if document is GONE:
                raise CheckpointError(
                    "the files hold one value each, not parts that have names, and these differ"
                )
            return JoinedManifest(document, objects, merging.conflicts, merging.tensors)
        names = dict.fromkeys(name for item in documents.values() for name in item)
        wanted = names if parts is None else [name for name in names if name in set(parts)]
        document = {}
        records = _Records({rank: item.objects for rank, item in self._manifests.items()})
        for name in wanted:
            if name == RANDOM_PART and self.is_one_for_many:
                merging.conflicts.append(Conflict(name, name, (tuple(self._ranks),)))
                continue
            is_divided = merging.is_divided(documents, name)
            if self.takes_first(name) and name not in first and not is_divided:
                # Another rank's own part.
                continue
            nodes: _Nodes = {rank: item[name] for rank, item in documents.items() if name in item}
            if is_divided:
                nodes = records.with_common_numbers(nodes, name)
                merging.note_divided(nodes)
            node = merging.merged(nodes, name)
            if node is not GONE:
                document[name] = node
        if records.text is not None:
            objects = records.text
        return JoinedManifest(
            document, objects, merging.conflicts, merging.tensors, merging.partial
        )

    @property
    def is_one_for_many(self) -> bool:
        """True when the one rank of a world saved, and this is a rank of another world: generators
        would give each of many ranks the same numbers."""
        return not self.takes_first(RANDOM_PART) and self.world_size == 1

    def takes_first(self, path: str) -> bool:
        """True where what a rank stored for itself at a key path is taken from one file."""
        if self._is_own_world or self._first_parts is None:
            return True
        return path.split(".")[0] in self._first_parts

    def position(self, rank: int) -> int:
        """Which of the files is that of a rank."""
        return self._ranks.index(rank)


class _Records:
    """What was recorded of the objects, by rank."""

    def __init__(self, texts: Mapping[int, str | None]) -> None:
        self._found: dict[int, dict[str, Any]] = {}
        for rank, text in texts.items():
            try:
                record = json.loads(text or "{}")
                objects = record.get("objects", {})
                self._found[rank] = objects if isinstance(objects, dict) else {}
            except (ValueError, AttributeError, RecursionError) as error:
                raise StateFormatError(f"the record of objects is damaged: {error}") from None
        self._first = next(iter(texts))
        self._base = texts[self._first]
        #: The record of all ranks; None where it is that of the first file.
        self.text: str | None = None

    def with_common_numbers(self, nodes: _Nodes, name: str) -> _Nodes:
        """The nodes of a part, where each optimizer numbers its parameters alike on all ranks."""
        for path in {path for found in self._found.values() for path in found}:
            if path.split(".")[0] != name.split(".")[0]:
                continue
            records = {rank: self._found[rank].get(path) for rank in nodes}
            if path != name:
                self._expect_alike(records, path)
                continue
            common = with_common_numbers(nodes, records, name)
            if common is None:
                continue
            nodes, names = common
            record = json.loads(self._base or '{"version": 1, "objects": {}}')
            if self.text is not None:
                record = json.loads(self.text)
            kept = next(item for item in records.values() if item)
            record["objects"][name] = {**kept, "parameters": names}
            self.text = json.dumps(record, separators=(",", ":"))
        return nodes

    def _expect_alike(self, records: Mapping[int, Any], path: str) -> None:
        found = [json.dumps((item or {}).get("parameters")) for item in records.values() if item]
        if len(set(found)) > 1:
            raise StateFormatError(
                f"the ranks had other parameters in '{path}', an optimizer inside of a part; save "
                "it as a part of its own to load it on another placement"
            )


class _Digests:
    """What the tensors hold that each rank stored whole, to compare them.

    A chunk is read and verified completely, and may hold thousands of them: all of a file are read
    together when the first of them is wanted.
    """

    def __init__(self, assembly: Assembly, documents: _Nodes, parts: set[str] | None) -> None:
        self._assembly, self._documents, self._parts = assembly, documents, parts
        self._found: dict[int, dict[str, bytes]] = {}

    def of(self, rank: int, name: str) -> bytes:
        """The digest of a tensor in the file of a rank."""
        if rank not in self._found:
            with self._assembly.blamed_on(rank):
                self._found[rank] = self._read(rank)
        return self._found[rank][name]

    def _read(self, rank: int) -> dict[str, bytes]:
        document = self._documents[rank]
        if self._parts is not None and isinstance(document, dict):
            document = {key: item for key, item in document.items() if key in self._parts}
        names = {name for name, _ in references(_undivided_only(document))}
        tensors = [self._assembly.stored(rank, name) for name in names]
        hashes = {name: hashlib.blake2b(digest_size=16) for name in names}
        batch: list[tuple[str, int, int]] = []
        room = 0
        for tensor in sorted(tensors, key=lambda item: item.payload_offset):
            for start in range(0, tensor.byte_count, _COMPARED_BYTE_COUNT):
                count = min(_COMPARED_BYTE_COUNT, tensor.byte_count - start)
                if room + count > _COMPARED_BYTE_COUNT:
                    self._update(rank, batch, hashes)
                    batch, room = [], 0
                batch.append((tensor.name, tensor.payload_offset + start, count))
                room += count
        self._update(rank, batch, hashes)
        return {name: item.digest() for name, item in hashes.items()}

    def _update(self, rank: int, batch: list[tuple[str, int, int]], hashes: dict[str, Any]) -> None:
        memory = [np.empty(count, np.uint8) for _, _, count in batch]
        self._assembly.readers[rank].read(
            [
                (offset, count, item.ctypes.data)
                for (_, offset, count), item in zip(batch, memory, strict=True)
            ]
        )
        for (name, _, _), item in zip(batch, memory, strict=True):
            hashes[name].update(item)


def _undivided_only(node: Any) -> Any:
    """A document without what is divided among files."""
    if isinstance(node, list):
        return [_undivided_only(item) for item in node]
    if not isinstance(node, dict):
        return node
    if tag_of(node) == TAG:
        return None
    return {key: _undivided_only(item) for key, item in node.items()}


class _Merging:
    """One document out of those of several ranks."""

    def __init__(
        self, assembly: Assembly, documents: _Nodes, parts: Iterable[str] | None
    ) -> None:
        self._assembly = assembly
        self._digests = _Digests(assembly, documents, None if parts is None else set(parts))
        self.conflicts: list[Conflict] = []
        self.tensors: dict[str, StoredTensor] = {}
        self._names: dict[tuple[int, str], str] = {}
        #: Nodes, by identity, with something below them that is divided among files.
        self._divided: set[int] = set()
        #: Key paths that some ranks had and others did not.
        self.partial: set[str] = set()
        # The nodes live as long as their identities are used.
        self._noted: list[Any] = []
        self.note_divided(documents)

    def note_divided(self, nodes: _Nodes) -> None:
        """Looks for what is divided in more nodes."""
        self._noted += nodes.values()
        for node in nodes.values():
            self._note_divided(node)

    def _note_divided(self, node: Any) -> bool:
        if not isinstance(node, (dict, list)):
            return False
        children = node.values() if isinstance(node, dict) else node
        found = tag_of(node) == TAG if isinstance(node, dict) else False
        if not found:
            # No generator: every child is looked at.
            found = any([self._note_divided(child) for child in children])
        if found:
            self._divided.add(id(node))
        return found

    def is_divided(self, documents: _Nodes, name: str) -> bool:
        """True when some file holds a part of something that is divided."""
        return any(
            name in document and id(document[name]) in self._divided
            for document in documents.values()
        )

    def merged(self, nodes: _Nodes, path: str) -> Any:
        """The node of what the ranks stored, or GONE after a conflict."""
        if not any(id(node) in self._divided for node in nodes.values()):
            return self._undivided(nodes, path)
        tags = {tag_of(node) if isinstance(node, dict) else None for node in nodes.values()}
        if tags == {TAG}:
            return self._joined(nodes, path)
        if len(tags) == 1 and TAG not in tags:
            tag = next(iter(tags))
            if tag is None or tag in SEQUENCE_TAGS:
                return self._sequence(nodes, path, tag)
            if all(items_of(node) is not None for node in nodes.values()):
                return self._mapping(nodes, path)
        raise StateFormatError(
            f"'{path}' is divided among the files of some ranks, and something else in others: "
            + ", ".join(f"{tag or 'plain'} on rank {rank}" for rank, tag in (
                (rank, tag_of(node) if isinstance(node, dict) else "") for rank, node
                in nodes.items()))
        )  # fmt: skip

    def _mapping(self, nodes: _Nodes, path: str) -> Any:
        """All keys that any rank has."""
        by_key: dict[Any, tuple[Any, dict[int, Any]]] = {}
        for rank, node in nodes.items():
            for stored, key, child in items_of(node) or []:
                by_key.setdefault(key, (stored, {}))[1][rank] = child
        kept = []
        for key, (stored, children) in by_key.items():
            if len(children) < len(nodes):
                self.partial.add(joined(path, key))
            child = self.merged(children, joined(path, key))
            if child is not GONE:
                kept.append((stored, child))
        first = dict(next(iter(nodes.values())))
        if "_metadata" in first and tag_of(first) == "$ordered":
            versions = [node["_metadata"] for node in nodes.values() if "_metadata" in node]
            pairs = {key: (stored, child) for item in versions[::-1] for stored, key, child
                     in items_of(item) or []}  # fmt: skip
            first["_metadata"] = with_items(versions[0], list(pairs.values()))
        return with_items(first, kept)

    def _sequence(self, nodes: _Nodes, path: str, tag: str | None) -> Any:
        contents = {rank: node if tag is None else node[tag] for rank, node in nodes.items()}
        if len({len(content) for content in contents.values()}) != 1:
            raise StateFormatError(f"'{path}' has not the same length in the files of all ranks")
        first = next(iter(nodes.values()))
        kept = [
            self.merged(
                {rank: content[index] for rank, content in contents.items()}, f"{path}.{index}"
            )
            for index in range(len(next(iter(contents.values()))))
        ]
        if any(child is GONE for child in kept):
            return GONE
        return kept if tag is None else {**first, tag: kept}

    def _joined(self, nodes: _Nodes, path: str) -> Any:
        """A tensor out of the boxes that the files hold."""
        parsed = {rank: ShardedNode.parsed(node[TAG]) for rank, node in nodes.items()}
        first = next(iter(parsed.values()))
        ranks: dict[int, None] = {}
        boxes = []
        for rank, node in parsed.items():
            if (node.shape, node.dtype) != (first.shape, first.dtype):
                raise StateFormatError(
                    f"'{path}' is {first.dtype} {first.shape} in the file of rank "
                    f"{next(iter(parsed))} and {node.dtype} {node.shape} in that of rank {rank}: "
                    "these files are not of one save, or the ranks saved other tensors under one "
                    "name"
                )
            ranks.update(dict.fromkeys(node.ranks))
            boxes += [(box, rank, local) for box, local in node.boxes]
        content = JoinedTensor(
            path, first.shape, first.dtype, tuple(ranks), tuple(boxes), first.placement
        )
        return {TAG: content}

    # -- what each rank stored for itself

    def _undivided(self, nodes: _Nodes, path: str) -> Any:
        """The node of the one file that counts, or that of all files when they are equal."""
        rank, first = next(iter(nodes.items()))
        if not self._assembly.takes_first(path) and len(nodes) > 1:
            conflict = self._conflict(nodes, path)
            if conflict is not None:
                self.conflicts.append(conflict)
                return GONE
        return self._renamed(first, rank)

    def _conflict(self, nodes: _Nodes, path: str) -> Conflict | None:
        forms = {rank: self._form(node, rank) for rank, node in nodes.items()}
        groups: dict[str, list[int]] = {}
        for rank, (text, _) in forms.items():
            groups.setdefault(text, []).append(rank)
        if len(groups) > 1:
            firsts = [nodes[ranks[0]] for ranks in groups.values()]
            where = _first_difference(firsts[0], firsts[1], path)
            return Conflict(path, where, tuple(map(tuple, groups.values())))
        stored = {rank: tensors for rank, (_, tensors) in forms.items()}
        for index, name in enumerate(next(iter(stored.values()))):
            same: dict[bytes, list[int]] = {}
            for rank, names in stored.items():
                same.setdefault(self._digests.of(rank, names[index]), []).append(rank)
            if len(same) > 1:
                where = name if name.startswith(path) else f"{path} ({name})"
                return Conflict(path, where, tuple(map(tuple, same.values())))
        return None

    def _form(self, node: Any, rank: int) -> tuple[str, list[str]]:
        """A node as text, with types and shapes in place of the names of tensors; and these."""
        names: list[str] = []

        def named(name: str) -> Any:
            tensor = self._assembly.stored(rank, name)
            names.append(name)
            return [tensor.stored_dtype, list(tensor.shape)]

        return json.dumps(_with_names(node, named)), names

    def _renamed(self, node: Any, rank: int) -> Any:
        """A node of one file with names that are unique among all files."""
        return _with_names(node, lambda name: self._name(rank, name))

    def _name(self, rank: int, name: str) -> str:
        if (rank, name) not in self._names:
            unique = name
            while unique in self.tensors:
                unique = f"{unique} of rank {rank}"
            self._names[rank, name] = unique
            tensor = self._assembly.stored(rank, name)
            tensor.name = unique
            tensor.payload_offset |= self._assembly.position(rank) << _FILE_SHIFT
            self.tensors[unique] = tensor
        return self._names[rank, name]


def _with_names(node: Any, change: Callable[[str], Any]) -> Any:
    """A node with other names of tensors."""
    if isinstance(node, list):
        return [_with_names(item, change) for item in node]
    if not isinstance(node, dict):
        return node
    tag = tag_of(node)
    content = node.get(tag)
    if tag in REFERENCES and isinstance(content, str):
        return {**node, tag: change(content)}
    if tag in ("$bytes", "$bytearray"):
        if isinstance(content, dict) and isinstance(content.get("tensor"), str):
            return {**node, tag: {"tensor": change(content["tensor"])}}
        return node
    return {key: _with_names(item, change) for key, item in node.items()}


def _first_difference(one: Any, other: Any, path: str) -> str:
    """The key path of the first value that differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key, item in one.items():
            if item != other[key]:
                below = path if key.startswith("$") else joined(path, key)
                return _first_difference(item, other[key], below)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (item, value) in enumerate(zip(one, other, strict=True)):
            if item != value:
                return _first_difference(item, value, f"{path}.{index}")
    return path
