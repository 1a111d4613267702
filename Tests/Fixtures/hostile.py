"""Files that are made to harm: every digest fits, so that only the rules and limits of the
specification stand between what they say and whoever believes it.

Each holds an honest checkpoint of sequence 1 in slot 0 and a hostile one of sequence 2, anchored,
in slot 1, unless its table says otherwise. A tool must say what is wrong, show nothing of it raw,
and go on with the honest one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zstandard
from compose import (
    HEADER,
    IDENTITY,
    NONE,
    PLANES,
    SAFETENSORS,
    SUPERBLOCK,
    ZSTD,
    Content,
    Image,
    encoded,
    manifest,
    noise,
    tensors,
)
from reader import digest

HONEST, HOSTILE = 0, 1
TOP = (1 << 64) - 1
LAST_STEP = (1 << 63) - 1

# Where the harm lies, which decides what each command says: see the table in test_hostile.py.
LOADS = "loads"  # It is odd, but keeps every rule: shown, escaped, and extracted.
BLOCK_RULE = "block"  # A slot header or chunk table breaks a rule: no candidate.
MANIFEST_RULE = "manifest"  # The JSON of the manifest does; the payload's bytes are whole.
CHUNK_RULE = "chunk"  # A chunk is not the frame that it should be.
CORRUPT = "corrupt"  # The identity has the right magic and breaks a rule.
TRUNCATED = "truncated"  # The file is shorter than it says.


@dataclass(frozen=True)
class Hostile:
    name: str
    description: str
    verdict: str
    # Findings of a full check, in any order.
    findings: tuple[str, ...]
    make: Callable[[], Image]
    # A word that the message of a refusal has.
    says: str = ""
    # The image is too large to be written down: a test makes it anew.
    is_large: bool = False


def file(**options) -> Image:
    image = Image(in_flight=1, retain=1, capacity=options.pop("capacity", 131_072), **options)
    for generation in (1, 2):
        image.commit(generation)
    image.complete(HONEST, 1, tensors(1, 5000))
    image.commit(3, HONEST)
    return image


def anchored(image: Image) -> Image:
    """With the hostile checkpoint named by the newest superblock, and closed."""
    image.commit(4, HOSTILE)
    image.commit(5, HOSTILE, is_clean=True)
    return image


def payload(content: Content, codec: int = NONE, **options) -> Callable[[], Image]:
    def make() -> Image:
        image = file()
        image.complete(HOSTILE, 2, content, codec, **options)
        return anchored(image)
    return make


def entry(index: int = 1, count: int = 70_000, **values) -> Callable[[], Image]:
    """A chunk-table entry that says something else, sealed."""
    def make() -> Image:
        image = file()
        image.complete(HOSTILE, 2, tensors(2, count))
        image.edit_entry(HOSTILE, index, **values)
        return anchored(image)
    return make


def header(**values) -> Callable[[], Image]:
    def make() -> Image:
        image = file()
        image.complete(HOSTILE, 2, tensors(2, 70_000))
        image.edit(image.header_offset(HOSTILE), HEADER, **values)
        return anchored(image)
    return make


def identity(**values) -> Callable[[], Image]:
    def make() -> Image:
        image = anchored_opaque()
        for offset in image.identity_offsets:
            image.edit(offset, IDENTITY, **values)
        return image
    return make


def anchored_opaque(**options) -> Image:
    image = file(**options)
    image.complete(HOSTILE, 2, tensors(2, 70_000))
    return anchored(image)


def superblock(**values) -> Callable[[], Image]:
    """Both copies of the newest superblock say something else."""
    def make() -> Image:
        image = anchored_opaque()
        for offset in image.superblock_offsets(5):
            image.edit(offset, SUPERBLOCK, **values)
        return image
    return make


def tensor(name: str, shape: str = "[4]", offsets: str = "[0,4]", dtype: str = "U8") -> str:
    return f'{json.dumps(name)}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def named(*names: str) -> Content:
    """Tensors of four bytes with these names."""
    parts = [tensor(name, offsets=f"[{4 * index},{4 * index + 4}]")
             for index, name in enumerate(names)]
    return manifest("{" + ",".join(parts) + "}", b"data" * len(names))


ESCAPES = "\x1b[31m\x1b]0;owned\x07\x1b[2J"
NAMES = {
    "escapes": ESCAPES,
    "newlines": "line\nslot 0: fine\r\nno\tproblem",
    "nul": "nul\0byte",
    "override": "abc\u202egnp.exe\u2066\u200b\ufeff",
    "c1": "c1\u009b31m\u0085\u2028\u2029",
    "delete": "back\b\b\b\x7f",
    "empty": "",
    "quotes": "\"'\\{}[]$(reboot)`id`;|&",
    "path": "../../../../etc/passwd",
    "dashes": "--format=raw",
    "combining": "e" + "\u0301" * 500,
    "wide": "核" * 1000,
    "private": "\ue000\uf8ff\U000fffff\ufffe",
    "tag": "flag\U000e0001\U000e0041",
    "long": "x" * 4096,
}

# JSON of a manifest over four bytes of data, and what the refusal speaks of.
MANIFESTS: list[tuple[str, str | bytes, str]] = [
    ("deep-arrays", '{"a":' + "[" * 100_000, ""),
    ("deep-objects", '{"a":' * 5000, ""),
    ("deep-metadata", '{"__metadata__":{"a":' + "{" * 50_000, ""),
    ("unended-string", '{"' + "a" * 60_000, ""),
    ("unended-escape", '{"a\\', ""),
    ("key-twice", "{" + tensor("a") + "," + tensor("a") + "}", "twice"),
    ("key-twice-escaped", "{" + tensor("a") + ',"\\u0061":{}}', "twice"),
    ("metadata-twice", '{"__metadata__":{},"__metadata__":{},' + tensor("a") + "}", "twice"),
    ("metadata-key-twice", '{"__metadata__":{" ":"","\\u0020":""},' + tensor("a") + "}", "twice"),
    ("metadata-array", '{"__metadata__":[],' + tensor("a") + "}", ""),
    ("lone-surrogate", '{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', ""),
    ("low-surrogate", '{"\\udc00\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', ""),
    ("utf8-overlong", b'{"\xc0\x80":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', ""),
    ("utf8-surrogate", b'{"\xed\xa0\x80":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', ""),
    ("utf8-cut", b'{"\xf0\x9f', ""),
    ("raw-escape", b'{"\x1b[31m":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', ""),
    ("raw-nul", b'{"\0":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', ""),
    ("byte-order-mark", b"\xef\xbb\xbf{}", ""),
    ("utf16", "{}".encode("utf-16"), ""),
    ("number-2-64", "{" + tensor("a", offsets="[0,18446744073709551616]") + "}", ""),
    ("number-digits", "{" + tensor("a", offsets="[0," + "9" * 60_000 + "]") + "}", ""),
    ("number-negative-zero", "{" + tensor("a", offsets="[-0,4]") + "}", ""),
    ("number-negative", "{" + tensor("a", shape="[-4]") + "}", ""),
    ("number-float", "{" + tensor("a", shape="[4.0]") + "}", ""),
    ("number-exponent", "{" + tensor("a", shape="[4e0]") + "}", ""),
    ("number-leading-zero", "{" + tensor("a", shape="[04]") + "}", ""),
    ("number-nan", "{" + tensor("a", shape="[NaN]") + "}", ""),
    ("number-true", "{" + tensor("a", shape="[true]") + "}", ""),
    ("shape-overflow", "{" + tensor("a", shape="[4294967296,4294967296,4]") + "}", ""),
    ("shape-wraps", "{" + tensor(
        "a", shape="[9223372036854775808,2,2]", offsets="[0,0]") + "}", ""),
    ("shape-zero-wraps", "{" + tensor(
        "a", shape="[18446744073709551615,18446744073709551615]", offsets="[0,1]") + "}", ""),
    ("shape-zero-behind", "{" + tensor("a", shape="[9223372036854775808,4,0]", offsets="[0,0]")
     + "," + tensor("b") + "}", "overflow"),
    ("shape-bits-wrap", "{" + tensor("a", shape="[2305843009213693952]", offsets="[0,0]",
                                      dtype="F64") + "}", ""),
    ("shape-65", "{" + tensor("a", shape=json.dumps([1] * 65), offsets="[0,1]") + "}", ""),
    ("shape-many", "{" + tensor("a", shape=json.dumps([1] * 3000)) + "}", ""),
    ("offsets-reversed", "{" + tensor("a", offsets="[4,0]") + "}", ""),
    ("offsets-top", "{" + tensor(
        "a", offsets="[18446744073709551611,18446744073709551615]") + "}", ""),
    ("offsets-outside", "{" + tensor("a", shape="[5]", offsets="[0,5]") + "}", ""),
    ("offsets-one", "{" + tensor("a", offsets="[0]") + "}", ""),
    ("offsets-three", "{" + tensor("a", offsets="[0,4,4]") + "}", ""),
    ("ranges-repeated", "{" + tensor("a") + "," + tensor("b") + "}", ""),
    ("ranges-overlap", "{" + tensor("a", shape="[3]", offsets="[0,3]") + ","
     + tensor("b", shape="[2]", offsets="[2,4]") + "}", ""),
    ("ranges-cycle", "{" + tensor("a", offsets="[0,4]") + ","
     + tensor("b", shape="[0]", offsets="[9,9]") + "}", ""),
    ("dtype-escapes", "{" + tensor("a", dtype="\\u001b[2J") + "}", "dtype"),
    ("key-escapes", '{"a":{"\\u001b[2J\\n":1}}', "key"),
    ("name-escapes-refused", "{" + tensor(ESCAPES, shape="[9]") + "}", ""),
    ("name-4097", "{" + tensor("x" * 4097) + "}", ""),
    ("trailing-garbage", "{" + tensor("a") + "}" + ESCAPES, ""),
    ("trailing-object", "{" + tensor("a") + "}{}", ""),
    ("commas", "{" + tensor("a") + ",}", ""),
    ("comment", "{/* a */" + tensor("a") + "}", ""),
    ("white-space-first", "\x20{" + tensor("a") + "}", ""),
]


def frame(raw: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(raw)


def bomb(byte_count: int, claimed: int) -> bytes:
    """A frame that unfolds to `byte_count` zeros and says that it has `claimed` bytes."""
    whole = bytearray(zstandard.ZstdCompressor(level=19).compress(bytes(byte_count)))
    # RFC 8878, 3.1.1: the descriptor's two highest bits give the size of the content size.
    size = {0: 1, 1: 2, 2: 4, 3: 8}[whole[4] >> 6]
    start = 5 if whole[4] & 0x20 else 6
    base = 256 if size == 2 else 0
    whole[start:start + size] = ((claimed - base) % (1 << (8 * size))).to_bytes(size, "little")
    return bytes(whole)


def huge_window(claimed: int) -> bytes:
    """A frame with a window of 3.75 TiB."""
    parts = struct.pack("<I", 0xFD2FB528) + bytes([0xC0, 0xFF]) + struct.pack("<Q", claimed)
    return parts + bytes([1, 0, 0])


def window(raw: bytes, exponent: int, mantissa: int = 0) -> bytes:
    """A right frame but for its window, far larger than its content: RFC 8878, 3.1.1.1.2."""
    whole = frame(raw)
    size = {0: 1, 1: 2, 2: 4, 3: 8}[whole[4] >> 6]
    blocks = whole[(5 if whole[4] & 0x20 else 6) + size:]
    head = struct.pack("<IBB", 0xFD2FB528, 0xC0, (exponent - 10) << 3 | mantissa)
    return head + struct.pack("<Q", len(raw)) + blocks


def checksum(raw: bytes, flip: int = 0) -> bytes:
    """A frame that ends with a checksum of its content."""
    whole = bytearray(frame(raw, write_checksum=True))
    whole[-1] ^= flip
    return bytes(whole)


SKIPPABLE = struct.pack("<II", 0x184D2A50, 16) + bytes(16)
# The stored form of a chunk of 65536 zeros, and what the refusal speaks of.
FRAMES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("bomb", lambda raw: bomb(1 << 28, len(raw))),
    ("bomb-large-claim", lambda raw: bomb(1 << 20, 1 << 60)),
    ("claims-less", lambda raw: bomb(len(raw), len(raw) - 1)),
    ("claims-more", lambda raw: bomb(len(raw) - 1, len(raw))),
    ("no-content-size", lambda raw: frame(raw, write_content_size=False)),
    ("huge-window", lambda raw: huge_window(len(raw))),
    ("window-32", lambda raw: window(raw, 32)),
    ("checksum-wrong", lambda raw: checksum(raw, 1)),
    ("skippable", lambda raw: SKIPPABLE + frame(raw)),
    ("skippable-only", lambda raw: SKIPPABLE * 100),
    ("two-frames", lambda raw: frame(raw[:100]) + frame(raw[100:])),
    ("empty-frame-behind", lambda raw: frame(raw) + frame(b"")),
    ("many-frames", lambda raw: frame(b"") * 700),
    ("byte-behind", lambda raw: frame(raw) + b"\0"),
    ("cut", lambda raw: frame(noise(5000, 1) + raw[5000:])[:-20]),
    ("dictionary", lambda raw: bytes.fromhex("28b52ffd") + bytes([0xA1, 7])
     + struct.pack("<I", len(raw)) + bytes(100)),
    ("legacy-magic", lambda raw: bytes.fromhex("27b52ffd") + bytes(60)),
    ("empty-block", lambda raw: struct.pack("<I", 0xFD2FB528) + bytes([0xA0])
     + struct.pack("<I", len(raw)) + bytes([1, 0, 0])),
    ("garbage", lambda raw: noise(3000, 3)),
]


def compressed(stored: Callable[[bytes], bytes], codec: int = ZSTD) -> Callable[[], Image]:
    """The second of two chunks, whose raw bytes are zeros."""
    content = manifest("{" + tensor("a", "[126976]", "[0,126976]") + "}", bytes(126_976))

    def make() -> Image:
        image = file()
        image.complete(HOSTILE, 2, content, codec, chunks=lambda index, raw: (
            stored(raw) if index else encoded(raw, codec)))
        return anchored(image)
    return make


def many_tensors(count: int) -> Callable[[], Image]:
    def make() -> Image:
        names = b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % index
                          for index in range(count))
        content = manifest(b"{" + names + b"}")
        image = file(capacity=len(content.data), chunk=4 << 20)
        image.complete(HOSTILE, 2, content)
        return anchored(image)
    return make


def json_claim(length: int, byte_count: int = 70_000) -> Callable[[], Image]:
    """A manifest that claims so many bytes of JSON."""
    content = Content(SAFETENSORS, struct.pack("<Q", length) + bytes(byte_count), byte_count)
    return payload(content)


def wide_json() -> Image:
    """A hundred million bytes of JSON, all of it white space."""
    content = manifest(b"{" + b" " * 99_999_990 + b"}", pad=False)
    image = file(capacity=len(content.data), chunk=4 << 20)
    image.complete(HOSTILE, 2, content, ZSTD)
    return anchored(image)


def manifest_over() -> Image:
    """A header that claims one byte of manifest more than there may be; the chunks are whole."""
    content = Content(SAFETENSORS, bytes(100_000_100), 100_000_009)
    image = file(capacity=len(content.data), chunk=4 << 20)
    image.complete(HOSTILE, 2, content, ZSTD)
    return anchored(image)


def full_tables(slots: int, is_sealed: bool) -> Callable[[], Image]:
    """Slots that each claim 2¹⁹ chunks, in a file that ends behind their chunk tables: 25 MB
    each, without a byte on the disk."""
    def make() -> Image:
        entries = 1 << 19
        image = Image(in_flight=min(slots - 1, 64), retain=max(1, slots - 64),
                      capacity=entries * 65_536, is_sparse=True)
        table = digest(bytes(entries * 48)) if is_sealed else bytes(16)
        for slot in range(slots):
            image.put_header(slot, image.header(
                slot, state=2, sequence=slot + 1, step=slot, chunk_count=entries,
                payload_byte_count=entries * 65_536, chunk_table_digest=table))
        image.commit(1)
        image.commit(2, 0)
        image.data.byte_count = image.header_offset(slots)
        return image
    return make


def far_end() -> Image:
    """Slots of 64 TiB: what a file of 2⁵³ bytes may say, in one block."""
    image = Image(in_flight=60, retain=16, capacity=1 << 46, chunk=256 << 20, is_sparse=True)
    image.commit(1)
    image.commit(2)
    image.data.byte_count = image.header_offset(1)
    return image


def tables() -> list[Hostile]:
    """Every hostile file but those of the lists above."""
    t002 = dict(verdict=BLOCK_RULE, findings=("T002",))
    s003 = dict(verdict=BLOCK_RULE, findings=("S003", "B006"))
    i003 = dict(verdict=CORRUPT, findings=("I003",))
    t004 = dict(verdict=MANIFEST_RULE, findings=("T004",))

    def hostile(name: str, description: str, make: Callable[[], Image], **options) -> Hostile:
        return Hostile(name=name, description=description, make=make, **options)

    return [
        hostile("chunks-overlap", "Two chunks in one place.", entry(stored_offset=0), **t002),
        hostile("chunks-outside", "A chunk behind its slot.", entry(stored_offset=131_072), **t002),
        hostile("chunks-wrap", "A chunk whose end wraps around.",
                entry(stored_offset=TOP - 4095), **t002),
        hostile("chunks-metadata", "A chunk that reaches back into the metadata.",
                entry(stored_offset=TOP - 8191), **t002),
        hostile("chunks-huge", "A chunk of 4 GiB.", entry(stored_byte_count=(1 << 32) - 1), **t002),
        hostile("chunks-raw-huge", "A chunk that decodes to 4 GiB.",
                entry(codec=1, stored_byte_count=10, raw_byte_count=(1 << 32) - 1), **t002),
        hostile("chunks-width-255", "Byte planes of 255 bytes.",
                entry(codec=2, plane_width=255, stored_byte_count=100), **t002),
        hostile("header-count-top", "2^32 - 1 chunks.", header(chunk_count=(1 << 32) - 1), **s003),
        hostile("header-payload-top", "A payload of 2^64 - 1 bytes.",
                header(payload_byte_count=TOP, stored_byte_count=TOP), **s003),
        hostile("header-chunk-0", "Chunks of no byte.", header(chunk_byte_count=0), **s003),
        hostile("header-manifest-top", "A manifest of 2^64 - 1 bytes.",
                header(payload_kind=1, manifest_byte_count=TOP), **s003),
        hostile("header-metadata-top", "User metadata of 2^32 - 1 bytes.",
                header(user_metadata_byte_count=(1 << 32) - 1), **s003),
        hostile("header-metadata-text", "User metadata that is no UTF-8.",
                header(user_metadata_byte_count=4, user_metadata=b"\xf0\x28\x8c\x28"), **s003),
        hostile("header-sequence-top", "Sequence 2^64 - 1.",
                header(sequence=TOP), verdict=LOADS, findings=()),
        hostile("header-step-last", "Step 2^63 - 1.",
                header(step=LAST_STEP), verdict=LOADS, findings=()),
        hostile("header-times", "It began in the year 2554 and was completed in 1970.",
                header(began_time=TOP, completed_time=0), verdict=LOADS, findings=()),
        hostile("header-metadata-escapes", "User metadata that redraws the terminal.",
                header(user_metadata_byte_count=len(ESCAPES), user_metadata=ESCAPES.encode()),
                verdict=LOADS, findings=()),
        hostile("header-metadata-json", "User metadata that would end a JSON string.",
                header(user_metadata_byte_count=12, user_metadata=b'"},{"a":"\\\n\0'),
                verdict=LOADS, findings=()),
        hostile("identity-slots-top", "2^32 - 1 slots.", identity(
            slot_count=(1 << 32) - 1, in_flight_count=(1 << 32) - 2), **i003),
        hostile("identity-capacity-top", "Chunk tables of 2^32 - 1 entries.",
                identity(chunk_capacity=(1 << 32) - 1), **i003),
        hostile("identity-offsets-top", "Data at 2^64 - 4096.",
                identity(data_offset=TOP - 4095), **i003),
        hostile("identity-slot-top", "Slots of 2^64 - 4096 bytes.",
                identity(slot_byte_count=TOP - 4095), **i003),
        hostile("identity-creator-escapes", "A creator that redraws the terminal.",
                identity(creator=ESCAPES.encode()), verdict=LOADS, findings=()),
        hostile("identity-fingerprint-escapes", "A fingerprint that redraws the terminal.",
                identity(fingerprint=(ESCAPES * 10).encode(),
                         fingerprint_byte_count=10 * len(ESCAPES)), verdict=LOADS, findings=()),
        hostile("identity-fingerprint-noise", "A fingerprint of control characters.",
                identity(fingerprint=bytes(range(1, 128)), fingerprint_byte_count=127),
                verdict=LOADS, findings=()),
        hostile("identity-created-top", "Created at the end of time.",
                identity(created_time=TOP), verdict=LOADS, findings=()),
        hostile("identity-rank-top", "Rank 2^32 - 2 of 2^32 - 1.",
                identity(rank=(1 << 32) - 2, world_size=(1 << 32) - 1),
                verdict=LOADS, findings=()),
        hostile("superblock-generation-top", "Generation 2^64 - 1, behind generation 4.",
                superblock(generation=TOP), verdict=LOADS, findings=()),
        hostile("superblock-watermark", "A watermark of 2^64 - 2, committed at the end of time.",
                superblock(watermark_step=TOP - 1, commit_time=TOP, storage_kind=(1 << 32) - 1,
                           writer_pid=(1 << 32) - 1, unsafe_shutdown_count=TOP),
                verdict=LOADS, findings=()),
        hostile("superblock-limit-top", "Every sequence below 2^64 - 1 may have been given.",
                superblock(sequence_limit=TOP), verdict=LOADS, findings=()),
        hostile("file-2-53", "One block that speaks of 2^53 bytes.", far_end,
                verdict=TRUNCATED, findings=("I008", "B010")),
        hostile("tables-large", "16 slots that claim 2^19 chunks each.", full_tables(16, False),
                verdict=TRUNCATED, findings=("I008", "B010", *["T001"] * 16)),
        hostile("tables-large-sealed", "The same, and the digests of their empty tables fit.",
                full_tables(16, True), verdict=TRUNCATED,
                findings=("I008", "B010", *["T002"] * 16)),
        hostile("json-claim-top", "A manifest that claims 2^64 - 1 bytes.",
                json_claim(TOP), **t004),
        hostile("json-claim-limit", "A manifest that claims 100 million bytes.",
                json_claim(100_000_000), **t004),
        hostile("json-claim-over", "A manifest that claims a byte more than the limit.",
                json_claim(100_000_001), **t004),
        hostile("header-manifest-over", "A header that claims a larger manifest than there may be.",
                manifest_over, is_large=True, **t004),
        hostile("json-white-space", "A hundred million bytes of white space.", wide_json,
                verdict=LOADS, findings=(), is_large=True),
        hostile("tensors-many", "Many tensors without a byte.", many_tensors(1 << 12),
                verdict=LOADS, findings=(), is_large=True),
        hostile("tensors-2-20", "As many tensors as there may be, without a byte.",
                many_tensors(1 << 20), verdict=LOADS, findings=(), is_large=True),
        hostile("tensors-over", "One more than 2^20 tensors.", many_tensors((1 << 20) + 1),
                is_large=True, **t004),
        hostile("metadata-hostile", "Strings in __metadata__ that redraw the terminal.",
                payload(manifest(json.dumps({
                    "__metadata__": {name: text for name, text in NAMES.items()} | {
                        ESCAPES: "key", "big": "[" * 30_000},
                    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}), b"data")),
                verdict=LOADS, findings=()),
        hostile("names-many", "All hostile names in one manifest.", payload(named(*NAMES.values())),
                verdict=LOADS, findings=()),
        hostile("shape-64", "64 dimensions.", payload(manifest(
            "{" + tensor("a", shape=json.dumps([1] * 64), offsets="[0,1]") + "}", b"d")),
            verdict=LOADS, findings=()),
        hostile("shape-zero-top", "A dimension of 0 among the largest ones.", payload(manifest(
            "{" + tensor("a", shape=f"[0,{TOP}]", offsets="[0,0]") + "}")),
            verdict=LOADS, findings=()),
        # Keys are compared as bytes: two spellings of one letter are two names.
        hostile("names-normal-forms", "Two names that look the same.",
                payload(named("\u00e9", "e\u0301")), verdict=LOADS, findings=()),
        hostile("zstd-window-31", "A chunk whose window is as large as it may be.",
                compressed(lambda raw: window(raw, 31, 7)), verdict=LOADS, findings=()),
        hostile("zstd-checksum", "A chunk whose frame has a checksum of its own.",
                compressed(checksum), verdict=LOADS, findings=()),
    ]


def all_hostile() -> Iterator[Hostile]:
    yield from tables()
    for name, text, says in MANIFESTS:
        yield Hostile(f"json-{name}", f"A manifest that breaks a rule: {name}.", MANIFEST_RULE,
                      ("T004",), payload(manifest(text, b"data")), says)
    for name, text in NAMES.items():
        yield Hostile(f"name-{name}", "A tensor with a hostile name.", LOADS, (),
                      payload(named(text)))
    for name, stored in FRAMES:
        yield Hostile(f"zstd-{name}", f"A chunk that is not the frame it should be: {name}.",
                      CHUNK_RULE, ("C002",), compressed(stored))
    yield Hostile("planes-bomb", "Byte planes of a bomb.", CHUNK_RULE, ("C002",),
                  compressed(lambda raw: bomb(1 << 28, len(raw)), PLANES))
