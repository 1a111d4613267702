#!/usr/bin/env python3
"""An independent reader of PCcheck files, written from spec/FORMAT.md alone.

It shares no code with PCcheck, so that the specification, not the program, is what both agree on.
Section numbers refer to spec/FORMAT.md. It needs `xxhash` and `zstandard`.

    reader.py FILE [--json]
"""

import argparse
import json
import os
import struct
import sys
from dataclasses import dataclass, field

import xxhash
import zstandard

BLOCK = 4096
LEAF = 65536
NO_SLOT = 0xFFFFFFFF
NO_STEP = 0xFFFFFFFFFFFFFFFF

# Section 7: bits of each dtype.
DTYPE_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "BOOL": 8, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}


class FormatError(Exception):
    """A structure that the specification does not allow."""


def check(condition, message):
    if not condition:
        raise FormatError(message)


def digest(data):
    """The 16 bytes of a digest as they lie on disk (section 1)."""
    return xxhash.xxh3_128_intdigest(data).to_bytes(16, "little")


def tree_digest(data):
    """The digest of large data, leaf by leaf (section 1)."""
    leaves = b"".join(digest(data[start:start + LEAF]) for start in range(0, len(data), LEAF))
    return digest(leaves + struct.pack("<Q", len(data)))


def digest_text(disk_bytes):
    return f"{int.from_bytes(disk_bytes, 'little'):032x}"


def round_up(value, alignment):
    return -(-value // alignment) * alignment


def text_field(data, count, name):
    check(count <= len(data), f"{name} has {count} bytes, at most {len(data)}")
    check(not any(data[count:]), f"{name} has bytes behind its text")
    try:
        return data[:count].decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} is not UTF-8") from error


@dataclass
class Identity:
    """Section 3."""

    uuid: bytes
    version: tuple
    slot_count: int
    in_flight_count: int
    retain_count: int
    chunk_byte_count: int
    chunk_capacity: int
    metadata_offset: int
    metadata_stride: int
    data_offset: int
    data_stride: int
    slot_byte_count: int
    file_byte_count: int
    created_time: int
    rank: int
    world_size: int
    creator: str
    fingerprint: str

    @classmethod
    def decode(cls, data):
        check(len(data) >= BLOCK, "the identity block is truncated")
        check(data[:8] == b"\x89PCK\r\n\x1a\n", "wrong magic in the identity block")
        check(digest(data[:4080]) == data[4080:4096], "the identity block is damaged")
        major, minor, block = struct.unpack_from("<HHI", data, 8)
        check(major == 1, f"format version {major}.{minor}")
        _, _, incompatible = struct.unpack_from("<QQQ", data, 16)
        check(incompatible == 0, f"unknown incompatible features {incompatible:#x}")
        check(block == BLOCK, f"blocks of {block} bytes")
        counts = struct.unpack_from("<5I", data, 56)
        offsets = struct.unpack_from("<6Q", data, 80)
        created, rank, world_size = struct.unpack_from("<QII", data, 128)
        (fingerprint_count,) = struct.unpack_from("<H", data, 176)
        creator = data[144:176]
        identity = cls(
            data[40:56], (major, minor), *counts, *offsets, created, rank, world_size,
            text_field(creator, len(creator.split(b"\0")[0]), "creator"),
            text_field(data[178:432], fingerprint_count, "fingerprint"))
        identity.check_geometry()
        check(1 <= world_size and rank < world_size, f"rank {rank} of {world_size}")
        check(not any(data[432:448]) or identity.slot_count <= 17, "slots of a group")
        check(not any(data[76:80]) and not any(data[448:4080]), "reserved identity bytes")
        return identity

    def check_geometry(self):
        """Sections 2 and 11."""
        check(1 <= self.in_flight_count <= 64, "in_flight_count")
        check(1 <= self.retain_count <= 16, "retain_count")
        check(LEAF <= self.chunk_byte_count <= 256 << 20, "chunk_byte_count")
        check(self.chunk_byte_count % LEAF == 0, "chunk_byte_count")
        check(BLOCK <= self.slot_byte_count <= 1 << 46, "slot_byte_count")
        check(self.slot_byte_count % BLOCK == 0, "slot_byte_count")
        check(self.file_byte_count <= 1 << 53, "file_byte_count")
        check(self.file_byte_count % BLOCK == 0, "file_byte_count")
        huge = 2 << 20
        alignment = huge if self.slot_byte_count >= huge else BLOCK
        capacity = -(-self.slot_byte_count // self.chunk_byte_count)
        check(1 <= capacity <= 1 << 24, "chunk_capacity")
        slots = self.in_flight_count + self.retain_count
        stride = BLOCK + round_up(capacity * 48, BLOCK)
        data_offset = round_up(4 * BLOCK + slots * stride, alignment)
        data_stride = round_up(self.slot_byte_count, alignment)
        expected = (slots, capacity, 4 * BLOCK, stride, data_offset, data_stride)
        found = (self.slot_count, self.chunk_capacity, self.metadata_offset,
                 self.metadata_stride, self.data_offset, self.data_stride)
        check(found == expected, f"geometry {found}, expected {expected}")
        needed = data_offset + slots * data_stride + 3 * BLOCK
        check(self.file_byte_count >= needed, f"file_byte_count below {needed}")


@dataclass
class Superblock:
    """Section 4."""

    generation: int
    sequence: int
    step: int
    slot: int
    is_clean_close: bool
    header_digest: bytes
    parent_digest: bytes
    watermark: tuple[int, int] | None
    attempt: int
    commit_time: int
    retained: list
    checksum: bytes

    @classmethod
    def decode(cls, data, identity, parity):
        check(data[:8] == b"PCKSUPER", "wrong magic in a superblock")
        check(digest(data[:496]) == data[496:512], "the superblock is damaged")
        check(data[8:24] == identity.uuid, "the superblock belongs to another file")
        generation, sequence, step, slot, flags = struct.unpack_from("<QQQII", data, 24)
        watermark_step, commit_time = struct.unpack_from("<QQ", data, 88)
        attempt, watermark_attempt = struct.unpack_from("<QQ", data, 408)
        check(attempt < 1 << 63, f"attempt {attempt}")
        (retained_count,) = struct.unpack_from("<I", data, 136)
        check(generation >= 1 and generation % 2 == parity, f"generation {generation}")
        check(flags in (0, 1), f"flags {flags:#x}")
        check(retained_count <= 16, f"retained_count {retained_count}")
        if sequence == 0:
            check(slot == NO_SLOT and step == 0, "a superblock without a checkpoint")
        else:
            check(slot < identity.slot_count, f"slot {slot}")
            check(step < 1 << 63, f"step {step}")
        retained = []
        newest, seen = sequence, {slot}
        for index in range(16):
            entry = data[144 + index * 16:160 + index * 16]
            entry_slot, reserved, entry_sequence = struct.unpack("<IIQ", entry)
            if index >= retained_count:
                check(not any(entry), "an unused retained slot is not zero")
                continue
            check(reserved == 0 and 1 <= entry_sequence < newest, "retained sequence")
            check(entry_slot < identity.slot_count and entry_slot not in seen, "retained slot")
            newest = entry_sequence
            seen.add(entry_slot)
            retained.append((entry_slot, entry_sequence))
        (sequence_limit,) = struct.unpack_from("<Q", data, 400)
        check(sequence_limit == 0 or sequence_limit > sequence, f"sequence_limit {sequence_limit}")
        check(not any(data[140:144]) and not any(data[424:496]), "reserved superblock bytes")
        return cls(generation, sequence, step, slot, flags == 1, data[56:72], data[72:88],
                   None if watermark_step == NO_STEP else (watermark_attempt, watermark_step),
                   attempt, commit_time, retained, data[496:512])


@dataclass
class Chunk:
    """Section 6, one entry of the chunk table."""

    stored_offset: int
    stored_byte_count: int
    raw_byte_count: int
    codec: int
    plane_width: int
    digest: bytes


@dataclass
class Slot:
    """Section 5: what the header of one slot says, or why it is no use."""

    index: int
    problem: str = ""
    state: str = "damaged"
    sequence: int = 0
    step: int = 0
    began_time: int = 0
    completed_time: int = 0
    payload_byte_count: int = 0
    stored_byte_count: int = 0
    chunk_byte_count: int = 0
    payload_kind: int = 0
    manifest_byte_count: int = 0
    table_digest: bytes = b""
    logical_digest: bytes = b""
    user_metadata: str = ""
    checksum: bytes = b""
    chunks: list = field(default_factory=list)


def read_slot(file, identity, index):
    slot = Slot(index)
    try:
        decode_header(file, identity, slot)
        if slot.state == "complete":
            slot.chunks = read_table(file, identity, slot)
    except FormatError as error:
        slot.problem = str(error)
    return slot


def read_at(file, offset, count):
    file.seek(offset)
    data = file.read(count)
    check(len(data) == count, f"the file ends before byte {offset + count}")
    return data


def decode_header(file, identity, slot):
    offset = identity.metadata_offset + slot.index * identity.metadata_stride
    data = read_at(file, offset, BLOCK)
    check(any(data), "blank")
    check(data[:8] == b"PCKSLOTH", "wrong magic in the slot header")
    check(digest(data[:4080]) == data[4080:4096], "the slot header is damaged")
    check(data[8:24] == identity.uuid, "the slot header belongs to another file")
    own_offset, index, state, sequence, step, began, completed, payload, stored = (
        struct.unpack_from("<QIIQQQQQQ", data, 24))
    check(own_offset == offset, f"the slot header belongs at byte {own_offset}")
    check(index == slot.index, f"the slot header belongs to slot {index}")
    chunk_size, chunk_count, codec, kind, manifest = struct.unpack_from("<IIIIQ", data, 88)
    (metadata_count,) = struct.unpack_from("<I", data, 144)
    check(state in (0, 1, 2), f"state {state}")
    check((sequence == 0) == (state == 0), f"sequence {sequence} in state {state}")
    check(step < 1 << 63, f"step {step}")
    check(payload <= identity.slot_byte_count, f"payload of {payload} bytes")
    check(stored <= payload, "stored_byte_count above the payload's size")
    check(manifest <= (payload if kind == 1 else 0), "manifest_byte_count")
    check(LEAF <= chunk_size <= 256 << 20 and chunk_size % LEAF == 0, "chunk_byte_count")
    check(chunk_count == -(-payload // chunk_size), "chunk_count")
    check(chunk_count <= identity.chunk_capacity, "chunk_count")
    check(codec in (0, 1, 2) and kind in (1, 2), "codec or payload_kind")
    check(metadata_count <= 2048, "user_metadata_byte_count")
    (attempt,) = struct.unpack_from("<Q", data, 2200)
    check(attempt < 1 << 63, f"attempt {attempt}")
    check(not any(data[148:152]) and not any(data[2208:4080]), "reserved header bytes")
    slot.user_metadata = text_field(data[152:2200], metadata_count, "user_metadata")
    slot.state = ("empty", "writing", "complete")[state]
    slot.sequence, slot.step = sequence, step
    slot.began_time, slot.completed_time = began, completed
    slot.payload_byte_count, slot.stored_byte_count = payload, stored
    slot.chunk_byte_count, slot.payload_kind = chunk_size, kind
    slot.manifest_byte_count = manifest
    slot.table_digest, slot.logical_digest = data[112:128], data[128:144]
    slot.checksum = data[4080:4096]


def read_table(file, identity, slot):
    count = -(-slot.payload_byte_count // slot.chunk_byte_count)
    offset = identity.metadata_offset + slot.index * identity.metadata_stride + BLOCK
    data = read_at(file, offset, count * 48)
    check(digest(data) == slot.table_digest, "the chunk table is damaged")
    chunks = []
    for index in range(count):
        entry = data[index * 48:index * 48 + 48]
        chunk = Chunk(*struct.unpack_from("<QIIBB", entry), entry[24:40])
        raw = min(slot.chunk_byte_count,
                  slot.payload_byte_count - index * slot.chunk_byte_count)
        check(chunk.raw_byte_count == raw, f"raw size of chunk {index}")
        check(chunk.codec in (0, 1, 2), f"codec of chunk {index}")
        if chunk.codec == 0:
            check(chunk.stored_byte_count == raw, f"stored size of chunk {index}")
        else:
            check(0 < chunk.stored_byte_count < raw, f"stored size of chunk {index}")
        widths = (2, 4, 8) if chunk.codec == 2 else (1,)
        check(chunk.plane_width in widths, f"plane width of chunk {index}")
        check(chunk.stored_offset % BLOCK == 0, f"offset of chunk {index}")
        check(chunk.stored_offset + chunk.stored_byte_count <= identity.data_stride,
              f"chunk {index} leaves its slot")
        check(not any(entry[18:24]) and not any(entry[40:48]), f"reserved bytes of {index}")
        chunks.append(chunk)
    check(sum(c.stored_byte_count for c in chunks) == slot.stored_byte_count, "stored sum")
    ordered = sorted(chunks, key=lambda c: c.stored_offset)
    for first, second in zip(ordered, ordered[1:]):
        check(first.stored_offset + first.stored_byte_count <= second.stored_offset,
              "two chunks overlap")
    return chunks


def decode_chunk(stored, chunk):
    """Section 6: `stored` is verified already."""
    if chunk.codec == 0:
        return stored
    check(stored[:4] == b"\x28\xb5\x2f\xfd", "no zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError as error:
        raise FormatError(str(error)) from error
    check(parameters.dict_id == 0, "a zstd dictionary")
    check(parameters.content_size == chunk.raw_byte_count, "the frame's content size")
    check(parameters.window_size < 1 << 32, "the window")
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    try:
        data = decompressor.decompress(stored)
    except zstandard.ZstdError as error:
        raise FormatError(str(error)) from error
    check(decompressor.eof and not decompressor.unused_data, "more than one zstd frame")
    check(len(data) == chunk.raw_byte_count, "the frame's size")
    if chunk.codec == 2:
        width = chunk.plane_width
        count = len(data) // width
        raw = bytearray(data)
        for plane in range(width):
            raw[plane:count * width:width] = data[plane * count:(plane + 1) * count]
        data = bytes(raw)
    return data


def strict_object(pairs):
    result = {}
    for key, value in pairs:
        check(key not in result, f"the key {key!r} is there twice")
        result[key] = value
    return result


def utf8(text):
    """Refuses half a surrogate pair, which Python's JSON lets pass."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(f"{text!r} has half a surrogate pair") from error


def number(text):
    """Digits alone, and no more of them than 2⁶⁴ has: -0 is no count."""
    check(text.isdigit() and len(text) <= 20, f"the number {text[:40]}")
    return int(text)


def is_count(value):
    return type(value) is int and 0 <= value < 1 << 64


def decode_manifest(payload, manifest_byte_count):
    """Section 7: tensors as name → (dtype, shape, bytes), and the metadata."""
    check(len(payload) >= 8, "the payload is too short for a manifest")
    (json_count,) = struct.unpack_from("<Q", payload)
    check(json_count <= 100_000_000, "the manifest is too large")
    check(8 + json_count == manifest_byte_count, "manifest_byte_count")
    text = bytes(payload[8:8 + json_count])
    check(text[:1] == b"{", "the manifest does not begin with an object")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=strict_object,
                             parse_int=number)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"manifest: {error}") from error
    data = memoryview(payload)[8 + json_count:]
    metadata = content.pop("__metadata__", {})
    check(isinstance(metadata, dict), "__metadata__")
    for key, value in metadata.items():
        check(isinstance(value, str), f"the value of {key!r}")
        utf8(key + value)
    tensors = {}
    end = 0

    def begin_of(item):
        check(isinstance(item[1], dict), f"{item[0]!r} is not an object")
        offsets = item[1].get("data_offsets")
        check(isinstance(offsets, list) and len(offsets) == 2, f"offsets of {item[0]!r}")
        check(all(is_count(offset) for offset in offsets), f"offsets of {item[0]!r}")
        return offsets

    for name, info in sorted(content.items(), key=begin_of):
        check(set(info) == {"dtype", "shape", "data_offsets"}, f"keys of {name!r}")
        dtype, shape = info["dtype"], info["shape"]
        check(len(utf8(name)) <= 4096, "a long name")
        check(isinstance(shape, list) and len(shape) <= 64, f"shape of {name!r}")
        check(all(is_count(extent) for extent in shape), f"shape of {name!r}")
        check(dtype in DTYPE_BITS, f"dtype {dtype!r}")
        bits = 1
        for factor in [*shape, DTYPE_BITS[dtype]]:
            bits *= factor
            check(bits < 1 << 64, f"the shape of {name!r} overflows")
        first, last = info["data_offsets"]
        check(bits % 8 == 0 and last - first == bits // 8, f"size of {name!r}")
        check(first == end, f"{name!r} begins at {first}, expected {end}")
        end = last
        tensors[name] = (dtype, shape, bytes(data[first:last]))
    check(end == len(data), f"the tensors end at {end} of {len(data)} bytes")
    return tensors, metadata


@dataclass
class Checkpoint:
    """A checkpoint whose every byte was verified."""

    slot: Slot
    payload: bytes
    tensors: dict
    metadata: dict


class Reader:
    """Reads a file's metadata; `load()` gives the newest checkpoint that verifies."""

    def __init__(self, path):
        self._file = open(path, "rb")
        self._file.seek(0, os.SEEK_END)
        self.real_byte_count = self._file.tell()
        self.problems = []
        self.identity = self._find_identity()
        slots_end = (self.identity.data_offset
                     + self.identity.slot_count * self.identity.data_stride)
        check(self.real_byte_count >= slots_end, "the file is truncated")
        if self.real_byte_count < self.identity.file_byte_count:
            self.problems.append("the end of the file is missing")
        superblocks = self._read_superblocks()
        self.slots = [read_slot(self._file, self.identity, index)
                      for index in range(self.identity.slot_count)]
        self.superblocks = sorted(superblocks, key=self._authority)
        self.anchor = self._choose_anchor()

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _find_identity(self):
        places = [0, self.real_byte_count // BLOCK * BLOCK - BLOCK]
        for place in places:
            try:
                check(place >= 0, "the file is shorter than a block")
                identity = Identity.decode(read_at(self._file, place, BLOCK))
                check(place in (0, identity.file_byte_count - BLOCK), "a stray mirror")
                return identity
            except FormatError as error:
                self.problems.append(f"identity at {place}: {error}")
        raise FormatError("; ".join(self.problems))

    def _read_superblocks(self):
        superblocks = []
        for parity in (0, 1):
            for start in (BLOCK, self.identity.file_byte_count - 3 * BLOCK):
                offset = start + parity * BLOCK
                try:
                    data = read_at(self._file, offset, BLOCK)
                    superblocks.append(Superblock.decode(data, self.identity, parity))
                except FormatError as error:
                    self.problems.append(f"superblock at {offset}: {error}")
        by_generation = {}
        for superblock in superblocks:
            other = by_generation.setdefault(superblock.generation, superblock)
            if other.checksum != superblock.checksum:
                self.problems.append(f"generation {superblock.generation} is forked")
        return superblocks

    def _is_there(self, superblock):
        """Whether the header that a superblock names is in its slot."""
        slot = self.slots[superblock.slot]
        return (slot.state == "complete" and slot.sequence == superblock.sequence
                and slot.checksum == superblock.header_digest)

    def _authority(self, superblock):
        """RECOVERY.md, step 3; the sort is stable, and the head's copies come first."""
        weight = 0 if superblock.sequence == 0 else 2 if self._is_there(superblock) else 1
        return -superblock.generation, -weight

    def _choose_anchor(self):
        """RECOVERY.md, step 3."""
        if not self.superblocks:
            return None
        superblock = self.superblocks[0]
        if superblock.sequence == 0:
            return superblock
        slot = self.slots[superblock.slot]
        return superblock if self._is_there(superblock) and not slot.problem else None

    def candidates(self):
        """RECOVERY.md, step 5: newest first."""
        usable = [s for s in self.slots if s.state == "complete" and not s.problem]
        anchored = [(self.anchor.slot, self.anchor.sequence)] if self.anchor else []
        retained = self.superblocks[0].retained if self.superblocks else []

        def order(slot):
            place = (slot.index, slot.sequence)
            return (-slot.sequence, place not in anchored, place not in retained, slot.index)

        return sorted(usable, key=order)

    def read(self, slot):
        """The verified payload of `slot`."""
        start = self.identity.data_offset + slot.index * self.identity.data_stride
        payload = bytearray()
        for index, chunk in enumerate(slot.chunks):
            stored = read_at(self._file, start + chunk.stored_offset, chunk.stored_byte_count)
            check(tree_digest(stored) == chunk.digest, f"chunk {index} is damaged")
            payload += decode_chunk(stored, chunk)
        check(tree_digest(payload) == slot.logical_digest, "the logical digest does not match")
        return bytes(payload)

    def load(self, slot=None):
        """The newest checkpoint that verifies, or the one in `slot`; None when there is none."""
        for candidate in [slot] if slot else self.candidates():
            try:
                payload = self.read(candidate)
                tensors, metadata = {}, {}
                if candidate.payload_kind == 1:
                    tensors, metadata = decode_manifest(payload, candidate.manifest_byte_count)
                else:
                    check(candidate.manifest_byte_count == 0, "manifest_byte_count")
                return Checkpoint(candidate, payload, tensors, metadata)
            except FormatError as error:
                self.problems.append(f"slot {candidate.index}: {error}")
        return None


def report(reader, checkpoint):
    """What `--json` prints."""
    slots = [{
        "slot": slot.index, "state": slot.state, "sequence": slot.sequence, "step": slot.step,
        "payload_byte_count": slot.payload_byte_count,
        "stored_byte_count": slot.stored_byte_count, "chunk_count": len(slot.chunks),
        "logical_digest": digest_text(slot.logical_digest) if slot.logical_digest else None,
        "user_metadata": slot.user_metadata, "problem": slot.problem or None,
    } for slot in reader.slots]
    newest = None
    if checkpoint:
        newest = {
            "slot": checkpoint.slot.index, "sequence": checkpoint.slot.sequence,
            "step": checkpoint.slot.step, "payload_xxh128":
                xxhash.xxh3_128_hexdigest(checkpoint.payload),
            "metadata": checkpoint.metadata,
            "tensors": [{
                "name": name, "dtype": dtype, "shape": shape, "byte_count": len(data),
                "xxh128": xxhash.xxh3_128_hexdigest(data),
            } for name, (dtype, shape, data) in checkpoint.tensors.items()],
        }
    anchor = reader.anchor
    return {
        "schema_version": 1, "file_uuid": reader.identity.uuid.hex(),
        "generation": anchor.generation if anchor else None,
        "anchored_sequence": anchor.sequence if anchor else None,
        "slots": slots, "loaded": newest, "problems": reader.problems,
    }


def main():
    parser = argparse.ArgumentParser(description="Reads and verifies a PCcheck file.")
    parser.add_argument("file")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        with Reader(arguments.file) as reader:
            checkpoint = reader.load()
            result = report(reader, checkpoint)
    except (FormatError, OSError) as error:
        print(f"reader.py: {arguments.file}: {error}", file=sys.stderr)
        return 8
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for slot in result["slots"]:
            print(f"slot {slot['slot']}: {slot['state']}, sequence {slot['sequence']}, "
                  f"step {slot['step']}, {slot['payload_byte_count']} bytes"
                  + (f"; {slot['problem']}" if slot["problem"] else ""))
        for problem in reader.problems:
            print(f"problem: {problem}")
        if checkpoint:
            print(f"newest valid: step {checkpoint.slot.step} in slot {checkpoint.slot.index}, "
                  f"{len(checkpoint.tensors)} tensors, every digest verified")
        else:
            print("no valid checkpoint")
    return 0 if checkpoint else 4


if __name__ == "__main__":
    sys.exit(main())
