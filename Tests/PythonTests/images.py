"""Checkpoint files written by FORMAT.md alone: for payloads that no other writer makes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import zstandard
from reader import digest, round_up, tree_digest

BLOCK = 4096
CHUNK = 1 << 16
UUID = bytes(range(16, 32))

#: Name, dtype, shape and bytes of a tensor.
Tensor = tuple[str, str, list[int], bytes]


def safetensors(
    tensors: list[Tensor], metadata: dict[str, str] | None = None, shift: int = 0
) -> bytes:
    """A safetensors file; `shift` bytes more of padding move all data off its grid."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, dtype, shape, content in tensors:
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % BLOCK + shift)
    return struct.pack("<Q", len(text)) + text + data


def seal(record: bytes, size: int) -> bytes:
    """Zeros up to the checksum in the last 16 of `size` bytes, and the checksum."""
    record = record.ljust(size - 16, b"\0")
    return record + digest(record)


def write(
    path: Path,
    payloads: list[bytes],
    compress: bool = False,
    *,
    manifest_shift: int = 0,
    is_opaque: bool = False,
) -> None:
    """A file with one retained or anchored checkpoint per payload; the steps are 10, 20, …

    With `compress`, every second chunk is one zstd frame, where that is smaller. The last
    checkpoint's header is off by `manifest_shift` in the length of its manifest, or says that its
    payload is opaque.
    """
    retain = len(payloads)
    slot_size = round_up(max(map(len, payloads)), BLOCK)
    slots = 1 + retain
    capacity = round_up(slot_size, CHUNK) // CHUNK
    stride = BLOCK + round_up(capacity * 48, BLOCK)
    alignment = 2 << 20 if slot_size >= 2 << 20 else BLOCK
    data_offset = round_up(16384 + slots * stride, alignment)
    data_stride = round_up(slot_size, alignment)
    size = data_offset + slots * data_stride + 3 * BLOCK
    image = bytearray(size)

    identity = b"\x89PCK\r\n\x1a\n" + struct.pack("<HHI3Q", 1, 0, BLOCK, 0, 0, 0) + UUID
    identity += struct.pack("<6I", slots, 1, retain, CHUNK, capacity, 0)
    identity += struct.pack("<6Q", 16384, stride, data_offset, data_stride, slot_size, size)
    identity += struct.pack("<QII32sH", 1, 0, 1, b"by hand", 0)
    image[:BLOCK] = image[-BLOCK:] = seal(identity, BLOCK)

    headers = []
    for index in range(slots):
        start = 16384 + index * stride
        payload = payloads[index] if index < retain else b""
        table, stored_size = b"", 0
        for number, begin in enumerate(range(0, len(payload), CHUNK)):
            raw = payload[begin : begin + CHUNK]
            frame = zstandard.compress(raw) if compress and number % 2 else raw
            stored, codec = (frame, 1) if len(frame) < len(raw) else (raw, 0)
            place = data_offset + index * data_stride + begin
            image[place : place + len(stored)] = stored
            table += struct.pack("<QIIBB6x", begin, len(stored), len(raw), codec, 1)
            table += tree_digest(stored) + bytes(8)
            stored_size += len(stored)
        used = index < retain
        header = b"PCKSLOTH" + UUID + struct.pack("<QII", start, index, 2 if used else 0)
        header += struct.pack("<2Q", index + 1 if used else 0, 10 * (index + 1) if used else 0)
        times = (10**9 * index + 1, 10**9 * index + 2) if used else (0, 0)
        header += struct.pack("<4Q", *times, len(payload), stored_size)
        is_last = index == retain - 1
        kind = 1 if used and not (is_last and is_opaque) else 2
        header += struct.pack("<4I", CHUNK, len(table) // 48, int(compress), kind)
        manifest = 8 + struct.unpack("<Q", payload[:8])[0] if kind == 1 else 0
        manifest += manifest_shift if is_last else 0
        header += struct.pack("<Q", manifest)
        header += (digest(table) + tree_digest(payload)) if used else bytes(32)
        headers.append(seal(header, BLOCK))
        image[start : start + BLOCK] = headers[-1]
        image[start + BLOCK : start + BLOCK + len(table)] = table

    newest = retain - 1
    created = superblock(1, None, [], bytes(16))
    anchored = superblock(
        2, (newest, headers[newest][-16:]), list(reversed(range(newest))), created[-16:]
    )
    for record, place in ((created, 2 * BLOCK), (anchored, BLOCK)):
        for offset in (place, size - 4 * BLOCK + place):
            image[offset : offset + 512] = record
    path.write_bytes(image)


def superblock(
    generation: int, anchor: tuple[int, bytes] | None, retained: list[int], parent: bytes
) -> bytes:
    """`anchor` is a slot and its header's digest; slot i has sequence i + 1 and step 10 more."""
    slot, header_digest = anchor or (0xFFFFFFFF, bytes(16))
    sequence = slot + 1 if anchor else 0
    record = b"PCKSUPER" + UUID + struct.pack("<3Q", generation, sequence, 10 * sequence)
    record += struct.pack("<II", slot, 1) + header_digest + parent
    record += struct.pack("<2Q", 2**64 - 1, 1) + bytes(16) + struct.pack("<IIQ", 1, 1, 0)
    record += struct.pack("<II", len(retained), 0)
    for index in retained:
        record += struct.pack("<IIQ", index, 0, index + 1)
    return seal(record, 512)


def slot_with_sequence(path: Path, source: int, sequence: int) -> bytes:
    """The file, with another sequence in the header of a slot, sealed again."""
    image = bytearray(path.read_bytes())
    stride = struct.unpack_from("<Q", image, 88)[0]
    start = 16384 + source * stride
    assert image[start : start + 8] == b"PCKSLOTH"
    header = image[start : start + BLOCK - 16]
    struct.pack_into("<Q", header, 40, sequence)
    image[start : start + BLOCK] = header + digest(bytes(header))
    return bytes(image)
