"""What a selected checkpoint holds: its tensors by name, its state document, its objects."""

from __future__ import annotations

from typing import Any

from .._core.reader import Reader
from ..errors import StateFormatError, UnsupportedState
from .comparing import OBJECTS_KEY
from .document import DOCUMENT_KEY, parse_document
from .references import references
from .stored import STORED_ITEM_SIZE, StoredTensor


class Manifest:
    """The manifest of a checkpoint, with the document out of its metadata."""

    def __init__(self, reader: Reader) -> None:
        """Reads that of the selected checkpoint."""
        self._entries, self._data_offset = reader.manifest()
        #: Texts by key, as safetensors has them.
        self.metadata: dict[str, str] = self._entries.pop("__metadata__", {})
        #: What was recorded of the objects of the state.
        self.objects: str | None = None
        if DOCUMENT_KEY in self.metadata:
            self.document = parse_document(self.metadata[DOCUMENT_KEY])
            self.objects = self.metadata.get(OBJECTS_KEY)
        else:
            # Without a document another program wrote the file: its tensors are all there is.
            self.document = {name: {"$array": name} for name in self._entries}

    def tensors_of(self, document: Any) -> dict[str, StoredTensor]:
        """What a document names, in the order of the file, checked against the manifest."""
        wanted = {name for name, _ in references(document)}
        missing = wanted - self._entries.keys()
        if missing:
            raise StateFormatError(
                f"the state document names a tensor '{min(missing)}' that is not stored"
            )
        return {
            name: self._checked(name, entry)
            for name, entry in self._entries.items()
            if name in wanted
        }

    def tensor(self, name: str) -> StoredTensor:
        """One tensor, checked."""
        if name not in self._entries:
            raise StateFormatError(
                f"the state document names a tensor '{name}' that is not stored"
            )
        return self._checked(name, self._entries[name])

    @property
    def payload_byte_count(self) -> int:
        """Where the last tensor ends."""
        ends = [entry["data_offsets"][1] for entry in self._entries.values()]
        return self._data_offset + max(ends, default=0)

    def _checked(self, name: str, entry: dict[str, Any]) -> StoredTensor:
        """A tensor whose length in the file is what its type and shape take."""
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in STORED_ITEM_SIZE:
            raise UnsupportedState(
                f"tensor '{name}' has the type {entry['dtype']}, which this package has no arrays "
                "for; load the others by name, or take its bytes with "
                "pcextract --format raw --tensor"
            )
        tensor = StoredTensor(
            name, entry["dtype"], tuple(entry["shape"]), payload_offset=self._data_offset + begin
        )
        if end - begin != tensor.byte_count:
            raise StateFormatError(
                f"tensor '{name}' has {end - begin} bytes; its type and shape take "
                f"{tensor.byte_count}"
            )
        return tensor
