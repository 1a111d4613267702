"""Safetensors files: one, or several with an index. Read and written without the package.

A header is kept as it is, so that the file is the same, byte for byte, when it is written again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._state.stored import STORED_ITEM_SIZE
from ..errors import StateFormatError
from .failures import DamagedInput
from .leaves import MappedTensor, map_file, parse_json, plain_name
from .output import StagedFile
from .stored import Stored

INDEX_SUFFIX = ".safetensors.index.json"
#: The limit of the format itself.
HEADER_BYTE_LIMIT = 100_000_000
_LENGTH_BYTE_COUNT = 8
# Types that are stored under another name: the words, and the type that torch has for them.
_WORDS = {"F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
          "F8_E5M2FNUZ": "float8_e5m2fnuz"}  # fmt: skip
_BITS = {
    **{name: 8 * size for name, size in STORED_ITEM_SIZE.items()},
    **dict.fromkeys(_WORDS, 8), "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_RANK_LIMIT = 64


@dataclass(frozen=True)
class Entry:
    """One tensor of a header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header:
    """The JSON text at the head of a file, checked."""

    def __init__(self, text: bytes, path: str, data_byte_count: int | None = None) -> None:
        """``data_byte_count`` is what follows it; None when nothing is known of that."""
        self.text = text
        self.path = path
        document = parse_json(text, path, "the header")
        if not isinstance(document, dict):
            raise self._broken("it is no JSON object")
        metadata = document.pop("__metadata__", {})
        if not isinstance(metadata, dict) or any(
            type(value) is not str for value in metadata.values()
        ):
            raise self._broken("__metadata__ is not an object of texts")
        self.metadata: dict[str, str] = metadata
        self.entries = {name: self._entry(name, item) for name, item in document.items()}
        self.data_byte_count = self._checked_length(data_byte_count)

    def _broken(self, what: str) -> DamagedInput:
        return DamagedInput(f"{self.path}: the safetensors header is damaged: {what}")

    def _entry(self, name: str, item: Any) -> Entry:
        if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
            raise self._broken(f"'{name}' lacks dtype, shape or data_offsets, or has more")
        dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
        numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(
            offsets, list) else [None]  # fmt: skip
        if any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers) or len(offsets) != 2:
            raise self._broken(f"shape or data_offsets of '{name}' are no lists of sizes")
        if dtype not in _BITS:
            raise self._broken(f"'{name}' has the unknown type {dtype!r}")
        if len(shape) > _RANK_LIMIT:
            raise self._broken(f"'{name}' has {len(shape)} dimensions, at most {_RANK_LIMIT} fit")
        bits = _BITS[dtype] * math.prod(shape)
        if bits != 8 * (offsets[1] - offsets[0]):
            raise self._broken(
                f"'{name}' has {offsets[1] - offsets[0]} bytes; type and shape take {bits / 8:g}"
            )
        return Entry(dtype, tuple(shape), *offsets)

    def _checked_length(self, found: int | None) -> int:
        """The tensors fill the data without a gap, and share none of it."""
        end = 0
        for name, entry in sorted(
            self.entries.items(), key=lambda item: (item[1].begin, item[1].end)
        ):
            if entry.begin != end:
                raise self._broken(f"'{name}' begins at byte {entry.begin}, expected {end}")
            end = entry.end
        if found is not None and found != end:
            kind = "it is truncated" if found < end else "it has bytes that belong to no tensor"
            raise DamagedInput(
                f"{self.path}: {found} bytes of tensors were found, expected {end}: {kind}; copy "
                "the file again"
            )
        return end


class SafetensorsFile:
    """A mapped file."""

    def __init__(self, path: str) -> None:
        memory = map_file(path)
        length = int.from_bytes(memory[:_LENGTH_BYTE_COUNT].tobytes(), "little")
        start = _LENGTH_BYTE_COUNT + length
        if memory.nbytes < _LENGTH_BYTE_COUNT or length > HEADER_BYTE_LIMIT:
            raise DamagedInput(
                f"{path}: a header of {length} bytes was found, expected at most "
                f"{HEADER_BYTE_LIMIT}; this is no safetensors file, or its head is damaged"
            )
        if start > memory.nbytes:
            raise DamagedInput(
                f"{path}: it has {memory.nbytes} bytes, but its header ends at {start}: it is "
                "truncated; copy the file again"
            )
        text = memory[_LENGTH_BYTE_COUNT:start].tobytes()
        self.header = Header(text, path, memory.nbytes - start)
        self._data = memory[start:]

    def tensors(self) -> dict[str, MappedTensor]:
        """The tensors by name, in the order of the header."""
        return {name: self._tensor(entry) for name, entry in self.header.entries.items()}

    def _tensor(self, entry: Entry) -> MappedTensor:
        memory = self._data[entry.begin : entry.end]
        dtype, shape = entry.dtype, entry.shape
        if dtype in STORED_ITEM_SIZE:
            return MappedTensor(dtype, shape, memory)
        if dtype in _WORDS:
            return MappedTensor("U8", shape, memory, _WORDS[dtype])
        if dtype == "C64":
            return MappedTensor("F32", (*shape, 2), memory, "complex64")
        if dtype == "F4" and shape and shape[-1] % 2 == 0:
            # As torch has them: two in a byte.
            return MappedTensor("U8", (*shape[:-1], shape[-1] // 2), memory, "float4_e2m1fn_x2")
        # A type that torch does not have: the bytes. The header records what they are.
        return MappedTensor("U8", (memory.nbytes,), memory)


def is_safetensors(head: bytes) -> bool:
    """True when a file that begins so is, or was meant to be, a safetensors file."""
    length = int.from_bytes(head[:_LENGTH_BYTE_COUNT], "little")
    return head[_LENGTH_BYTE_COUNT : _LENGTH_BYTE_COUNT + 1] == b"{" and 0 < length < 1 << 40


def read_index(path: str) -> tuple[bytes, list[str], dict[str, str]]:
    """An index file: its bytes, the paths of its shards, and which one holds which tensor."""
    with open(path, "rb") as file:
        text = file.read(HEADER_BYTE_LIMIT + 1)
    if len(text) > HEADER_BYTE_LIMIT:
        raise DamagedInput(f"{path}: the index is longer than {HEADER_BYTE_LIMIT} bytes")
    document = parse_json(text, path, "the index")
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict) or any(type(value) is not str for value in names.values()):
        raise DamagedInput(f"{path}: the index has no weight_map of names, which was expected")
    for name in set(names.values()):
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise DamagedInput(
                f"{path}: the index names the file '{name}', expected one beside it"
            )
    folder = os.path.dirname(path)
    shards = [os.path.join(folder, name) for name in sorted(set(names.values()))]
    for shard in shards:
        if not os.path.exists(shard):
            raise DamagedInput(f"{path}: the index names {shard}, which is not there")
    return text, shards, names


def read_shards(
    shards: list[str], weight_map: dict[str, str]
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The tensors of several files in the order of the index, and what to write them from."""
    held: dict[str, MappedTensor] = {}
    files = []
    for path in shards:
        opened = SafetensorsFile(path)
        name = os.path.basename(path)
        for key, tensor in opened.tensors().items():
            if weight_map.get(key) != name:
                raise DamagedInput(
                    f"{path}: it holds '{key}', which the index says is in "
                    f"{weight_map.get(key, 'no file')}"
                )
            held[key] = tensor
        files.append({"name": name, "header": opened.header.text.decode("utf-8")})
    for key, name in weight_map.items():
        if key not in held:
            raise DamagedInput(f"{name}: '{key}' is not in it, where the index says it is")
    return {key: held[key] for key in weight_map}, files


def write_file(
    stored: Stored,
    header: Header,
    names: dict[str, str],
    staged: StagedFile,
) -> None:
    """A file with a given header; ``names`` are those of the stored tensors."""
    file = staged.file
    file.write(len(header.text).to_bytes(_LENGTH_BYTE_COUNT, "little") + header.text)
    start = file.tell()
    wanted = []
    for name, entry in header.entries.items():
        if name not in names:
            raise StateFormatError(f"the checkpoint was converted from a file with '{name}', "
                                   "which is not in it any more")  # fmt: skip
        tensor = stored.tensor(names[name])
        if tensor.byte_count != entry.end - entry.begin:
            raise StateFormatError(
                f"'{name}' has {tensor.byte_count} bytes, expected {entry.end - entry.begin} as "
                "in the file that it was converted from"
            )
        wanted.append((tensor, entry.begin))

    def place(offset: int) -> Callable[[memoryview], None]:
        def write(piece: memoryview) -> None:
            nonlocal offset
            file.seek(start + offset)
            file.write(piece)
            offset += piece.nbytes

        return write

    stored.copy([(tensor, place(offset)) for tensor, offset in wanted])


def header_of_note(entry: Any) -> tuple[str, Header]:
    """Name and header of a file that a checkpoint was converted from."""
    if not isinstance(entry, dict) or type(entry.get("header")) is not str:
        raise StateFormatError("the note of the source has no header of a safetensors file")
    name = plain_name(entry.get("name"))
    try:
        return name, Header(entry["header"].encode("utf-8"), name)
    except (DamagedInput, UnicodeEncodeError) as error:
        raise StateFormatError(f"the note of the source is damaged: {error}") from None


def new_header(stored: Stored, tensors: dict[str, str], metadata: dict[str, str]) -> Header:
    """A header for stored tensors under these names, in the order of the payload."""
    document: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in sorted(tensors, key=lambda name: stored.tensor(tensors[name]).payload_offset):
        tensor = stored.tensor(tensors[name])
        end = offset + tensor.byte_count
        document[name] = {
            "dtype": tensor.stored_dtype, "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    encoded = text.encode("utf-8", "backslashreplace")
    return Header(encoded + b" " * (-len(encoded) % 8), stored.path)
