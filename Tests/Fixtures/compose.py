"""Composes checkpoint files block by block, from spec/FORMAT.md alone.

It shares no code with PCcheck: offsets and sizes are read from the tables of the specification,
digests come from `xxhash`, frames from `zstandard`. Everything is a function of its arguments, so
that the same calls give the same bytes. Nothing is checked: what is composed may be nonsense, with
digests that fit it.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import zstandard

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "Tests" / "PythonTests"))

from reader import BLOCK, LEAF, NO_SLOT, NO_STEP, digest, round_up, tree_digest  # noqa: E402

UUID = bytes(range(0x10, 0x20))
OTHER_UUID = bytes(range(0x80, 0x90))
TIME = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
NONE, ZSTD, PLANES = 0, 1, 2
SAFETENSORS, OPAQUE = 1, 2
EMPTY, WRITING, COMPLETE = 0, 1, 2

Layout = dict[str, tuple[int, int]]


def layout(section: str, table: int = 0) -> Layout:
    """The fields of a structure, as the specification's table has them: name → offset, size."""
    text = (ROOT / "spec" / "FORMAT.md").read_text()
    part = text.split(f"\n## {section}", 1)[1].split("\n## ", 1)[0]
    tables = part.split("| offset | size | field | bad value | meaning |\n")[1:]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", tables[table].split("\n\n")[0], re.M)
    return {name: (int(offset), int(size)) for offset, size, name in rows}


IDENTITY = layout("3. Identity block")
SUPERBLOCK = layout("4. Superblock")
HEADER = layout("5. Slot header")
ENTRY = layout("6. Chunk table")


def put(block: bytearray, fields: Layout, **values: int | bytes) -> None:
    """Sets fields of a block; a number is cut to the field's size, text is padded with zeros."""
    for name, value in values.items():
        offset, size = fields[name]
        if isinstance(value, int):
            value = (value % (1 << (8 * size))).to_bytes(size, "little")
        block[offset:offset + size] = value.ljust(size, b"\0")


def seal(block: bytearray, fields: Layout) -> bytes:
    """Gives a block the checksum that fits it, and returns that."""
    offset, size = fields["checksum"]
    block[offset:offset + size] = digest(bytes(block[:offset]))
    return bytes(block[offset:offset + size])


def noise(count: int, seed: int) -> bytes:
    return Random(seed).randbytes(count)


@dataclass(frozen=True)
class Content:
    """A payload."""

    kind: int
    data: bytes
    manifest_byte_count: int = 0


def manifest(text: str | bytes, data: bytes = b"", pad: bool = True) -> Content:
    """A safetensors payload with this JSON, whatever it says."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if pad:
        raw = raw.ljust(round_up(8 + len(raw), BLOCK) - 8)
    head = struct.pack("<Q", len(raw)) + raw
    return Content(SAFETENSORS, head + data, len(head))


def tensors(seed: int, count: int = 150_000, fill: bool = True) -> Content:
    """Two F32 tensors. `fill`: every 64 KiB one byte, which is small as a patch; else rows of
    noise, which stay some hundred bytes when compressed."""
    first = count // 8 * 4
    text = json.dumps({
        "__metadata__": {"seed": str(seed)},
        "layer.weight": {"dtype": "F32", "shape": [first // 4], "data_offsets": [0, first]},
        "layer.bias": {"dtype": "F32", "shape": [(count - first) // 4],
                       "data_offsets": [first, count]},
    }, separators=(",", ":"))
    return manifest(text, body(seed, count, fill))


def opaque(seed: int, count: int = 150_000, fill: bool = True) -> Content:
    return Content(OPAQUE, body(seed, count, fill))


def body(seed: int, count: int, fill: bool) -> bytes:
    if fill:
        leaves = [bytes([(seed * 16 + index) % 255 + 1]) * LEAF
                  for index in range(-(-count // LEAF))]
        return b"".join(leaves)[:count]
    return (noise(300, seed) * (count // 300 + 1))[:count]


def encoded(raw: bytes, codec: int, width: int = 4) -> bytes:
    """The stored form of a chunk (section 6)."""
    if codec == NONE:
        return raw
    if codec == PLANES:
        whole = len(raw) // width * width
        planes = b"".join(raw[plane:whole:width] for plane in range(width))
        raw = planes + raw[whole:]
    return zstandard.ZstdCompressor(level=3).compress(raw)


class Image:
    """A file in the making."""

    def __init__(
        self, *, in_flight: int = 2, retain: int = 1, capacity: int = 163_840,
        chunk: int = LEAF, file_byte_count: int | None = None, uuid: bytes = UUID,
        is_sparse: bool = False, **identity: int | bytes,
    ) -> None:
        self.slot_count = in_flight + retain
        self.retain = retain
        self.chunk = chunk
        self.uuid = uuid
        self.capacity = round_up(capacity, BLOCK)
        entries = -(-self.capacity // chunk)
        huge = 2 << 20
        alignment = huge if self.capacity >= huge else BLOCK
        self.stride = BLOCK + round_up(entries * 48, BLOCK)
        self.data_offset = round_up(4 * BLOCK + self.slot_count * self.stride, alignment)
        self.data_stride = round_up(self.capacity, alignment)
        end = self.data_offset + self.slot_count * self.data_stride + 3 * BLOCK
        self.byte_count = file_byte_count or end
        self.data = SparseBytes(self.byte_count) if is_sparse else bytearray(self.byte_count)
        block = bytearray(BLOCK)
        values: dict[str, int | bytes] = dict(
            magic=b"\x89PCK\r\n\x1a\n", version_major=1, block_byte_count=BLOCK, file_uuid=uuid,
            slot_count=self.slot_count, in_flight_count=in_flight, retain_count=retain,
            chunk_byte_count=chunk, chunk_capacity=entries, metadata_offset=4 * BLOCK,
            metadata_stride=self.stride, data_offset=self.data_offset,
            data_stride=self.data_stride, slot_byte_count=self.capacity,
            file_byte_count=self.byte_count, created_time=TIME, world_size=1,
            creator=b"pccheck composed")
        put(block, IDENTITY, **(values | identity))
        seal(block, IDENTITY)
        for offset in self.identity_offsets:
            self.data[offset:offset + BLOCK] = block
        for slot in range(self.slot_count):
            self.put_header(slot, self.header(slot))
        self.parent = bytes(16)
        # What was put where, by slot: sequence, step, content.
        self.held: dict[int, tuple[int, int, Content]] = {}

    # Places.

    @property
    def identity_offsets(self) -> tuple[int, int]:
        return 0, self.byte_count - BLOCK

    def superblock_offsets(self, generation: int) -> tuple[int, int]:
        place = generation % 2 * BLOCK
        return BLOCK + place, self.byte_count - 3 * BLOCK + place

    @property
    def slots_end(self) -> int:
        return self.data_offset + self.slot_count * self.data_stride

    def header_offset(self, slot: int) -> int:
        return 4 * BLOCK + slot * self.stride

    def table_offset(self, slot: int) -> int:
        return self.header_offset(slot) + BLOCK

    def chunk_offset(self, slot: int, index: int = 0) -> int:
        return self.data_offset + slot * self.data_stride + index * self.chunk

    def block(self, offset: int) -> bytearray:
        return bytearray(self.data[offset:offset + BLOCK])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset:offset + len(data)] = data

    # Structures.

    def header(self, slot: int, **values: int | bytes) -> bytearray:
        block = bytearray(BLOCK)
        defaults: dict[str, int | bytes] = dict(
            magic=b"PCKSLOTH", file_uuid=self.uuid, own_offset=self.header_offset(slot),
            slot_index=slot, state=EMPTY, chunk_byte_count=self.chunk, payload_kind=OPAQUE)
        put(block, HEADER, **(defaults | values))
        return block

    def put_header(self, slot: int, block: bytearray) -> bytes:
        checksum = seal(block, HEADER)
        self.write(self.header_offset(slot), block)
        return checksum

    def mark(self, slot: int, sequence: int, step: int | None = None) -> None:
        """State *writing*: a checkpoint took the slot."""
        self.put_header(slot, self.header(
            slot, state=WRITING, sequence=sequence, step=sequence * 10 if step is None else step,
            began_time=TIME + sequence * SECOND))

    def complete(
        self, slot: int, sequence: int, content: Content, codec: int = NONE,
        chunks: Callable[[int, bytes], bytes] | None = None, **values: int | bytes,
    ) -> bytes:
        """A whole checkpoint: chunks, table, header. Returns the header's checksum. `chunks`
        gives a chunk's stored form instead of the right one."""
        table, stored_sum = bytearray(), 0
        for index, start in enumerate(range(0, len(content.data), self.chunk)):
            raw = content.data[start:start + self.chunk]
            stored, used = encoded(raw, codec), codec
            if chunks:
                stored = chunks(index, raw)
            elif len(stored) >= len(raw):
                stored, used = raw, NONE
            self.write(self.chunk_offset(slot, index), stored)
            entry = bytearray(48)
            put(entry, ENTRY, stored_offset=index * self.chunk, stored_byte_count=len(stored),
                raw_byte_count=len(raw), codec=used, plane_width=4 if used == PLANES else 1,
                digest=tree_digest(stored))
            table += entry
            stored_sum += len(stored)
        self.write(self.table_offset(slot), table)
        began = TIME + sequence * SECOND
        defaults: dict[str, int | bytes] = dict(
            state=COMPLETE, sequence=sequence, step=sequence * 10, began_time=began % (1 << 64),
            completed_time=(began + SECOND // 2) % (1 << 64),
            payload_byte_count=len(content.data), stored_byte_count=stored_sum,
            chunk_count=len(table) // 48, codec=codec, payload_kind=content.kind,
            manifest_byte_count=content.manifest_byte_count, chunk_table_digest=digest(table),
            logical_digest=tree_digest(content.data))
        block = self.header(slot, **(defaults | values))
        self.held[slot] = (sequence, field(block, HEADER, "step"), content)
        return self.put_header(slot, block)

    def superblock(
        self, generation: int, anchor: int | None = None, *,
        retained: tuple[tuple[int, int], ...] = (), is_clean: bool = False,
        parent: bytes | None = None, **values: int | bytes,
    ) -> bytearray:
        """The superblock that anchors the checkpoint in slot `anchor`, as its header is now."""
        block = bytearray(BLOCK)
        head = self.block(self.header_offset(anchor)) if anchor is not None else bytearray(BLOCK)
        entries = b"".join(struct.pack("<IIQ", slot, 0, number) for slot, number in retained)
        defaults: dict[str, int | bytes] = dict(
            magic=b"PCKSUPER", file_uuid=self.uuid, generation=generation,
            sequence=field(head, HEADER, "sequence"), step=field(head, HEADER, "step"),
            slot_index=NO_SLOT if anchor is None else anchor, flags=int(is_clean),
            slot_header_digest=bytes(head[4080:]),
            parent_digest=self.parent if parent is None else parent, watermark_step=NO_STEP,
            commit_time=(TIME + generation * SECOND) % (1 << 64), writer_pid=4242, storage_kind=1,
            retained_count=len(retained), retained_slots=entries)
        put(block, SUPERBLOCK, **(defaults | values))
        return block

    def commit(self, generation: int, anchor: int | None = None, **options) -> None:
        """Writes both copies of a superblock."""
        block = self.superblock(generation, anchor, **options)
        self.parent = seal(block, SUPERBLOCK)
        for offset in self.superblock_offsets(generation):
            self.write(offset, block)

    # Changes to what is there.

    def edit(self, offset: int, fields: Layout, **values: int | bytes) -> None:
        """Changes fields of the block at `offset` and seals it again."""
        block = self.block(offset)
        put(block, fields, **values)
        seal(block, fields)
        self.write(offset, block)

    def edit_entry(self, slot: int, index: int, **values: int | bytes) -> None:
        """Changes an entry of a chunk table, and seals the table in its header."""
        offset = self.table_offset(slot) + index * 48
        entry = bytearray(self.data[offset:offset + 48])
        put(entry, ENTRY, **values)
        self.write(offset, entry)
        self.seal_table(slot)

    def seal_table(self, slot: int, **values: int | bytes) -> None:
        offset = self.header_offset(slot)
        count = field(self.block(offset), HEADER, "chunk_count")
        table = bytes(self.data[offset + BLOCK:offset + BLOCK + count * 48])
        self.edit(offset, HEADER, **({"chunk_table_digest": digest(table)} | values))

    def anchor_again(self, generation: int, anchor: int) -> None:
        """Makes the superblock of `generation` name the header in slot `anchor` as it is now."""
        head = self.block(self.header_offset(anchor))
        for offset in self.superblock_offsets(generation):
            self.edit(offset, SUPERBLOCK, slot_index=anchor,
                      slot_header_digest=bytes(head[4080:]),
                      sequence=field(head, HEADER, "sequence"),
                      step=field(head, HEADER, "step"))


class SparseBytes:
    """Bytes of a file that is too large for memory: 4 KiB blocks, and what is not there is zero."""

    def __init__(self, byte_count: int) -> None:
        self.byte_count = byte_count
        self.blocks: dict[int, bytearray] = {}

    def __len__(self) -> int:
        return self.byte_count

    def __getitem__(self, part: slice) -> bytes:
        pieces = []
        for start in range(part.start // BLOCK * BLOCK, part.stop, BLOCK):
            block = self.blocks.get(start, bytes(BLOCK))
            pieces.append(block[max(part.start - start, 0):part.stop - start])
        return b"".join(bytes(piece) for piece in pieces)

    def __setitem__(self, part: slice, data: bytes) -> None:
        for start in range(part.start // BLOCK * BLOCK, part.start + len(data), BLOCK):
            block = self.blocks.setdefault(start, bytearray(BLOCK))
            first, last = max(part.start, start), min(part.start + len(data), start + BLOCK)
            block[first - start:last - start] = data[first - part.start:last - part.start]


def field(block: bytes | bytearray, fields: Layout, name: str) -> int:
    offset, size = fields[name]
    return int.from_bytes(block[offset:offset + size], "little")


def run(
    saves: int, *, kind: int = SAFETENSORS, codec: int = NONE, is_closed: bool = False,
    generation: int = 2, sequence: int = 0, step: int | None = None, count: int = 150_000,
    save_options: dict[str, int | bytes] | None = None, has_notes: bool = False,
    commit_options: dict[str, int | bytes] | None = None, **options,
) -> Image:
    """A file after so many saves, slot after slot; the oldest content is overwritten.

    `generation` and `sequence` are those from which the run goes on. Notes are user metadata as
    long as it may be, so that headers differ in more than one sector.
    """
    image = Image(**options)
    commit_options = commit_options or {}
    for number in (generation - 1, generation):
        image.commit(number)
    held: list[tuple[int, int]] = []
    for index in range(1, saves + 1):
        slot, number = (index - 1) % image.slot_count, sequence + index
        make = tensors if kind == SAFETENSORS else opaque
        values = dict(save_options or {})
        if step is not None:
            values["step"] = step + index
        if has_notes:
            values.update(user_metadata_byte_count=2048, user_metadata=bytes([96 + index]) * 2048)
        image.complete(slot, number, make(index, count, codec == NONE), codec, **values)
        held = [(slot, number), *held][:image.retain]
        image.commit(generation + index, slot, retained=tuple(held[1:]), **commit_options)
    if is_closed:
        anchor = held[0][0] if held else None
        image.commit(generation + saves + 1, anchor, retained=tuple(held[1:]), is_clean=True,
                     **commit_options)
    return image
