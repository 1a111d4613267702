"""Blocks whose digests fit and whose fields break a rule of spec/FORMAT.md: one rule each.

Such a block comes from a faulty program, and its checksum says nothing. The base is that of
`damage.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from compose import (
    HEADER,
    IDENTITY,
    SAFETENSORS,
    SUPERBLOCK,
    Content,
    manifest,
)
from damage import ANCHORED, OLDER, SEQUENCES, case, header, whole
from expect import Case, found

BIG = 1 << 63
TOP = (1 << 64) - 1
NOT_UTF8 = b"\xff\xfe"

# Section 3. A copy that breaks a rule is damaged; both are a file that nobody can read.
IDENTITY_RULES: list[tuple[str, dict[str, int | bytes]]] = [
    ("block-512", {"block_byte_count": 512}),
    ("slot-count-6", {"slot_count": 6}),
    ("slot-count-0", {"slot_count": 0, "in_flight_count": 0, "retain_count": 0}),
    ("in-flight-0", {"in_flight_count": 0, "retain_count": 5}),
    ("in-flight-65", {"in_flight_count": 65}),
    ("retain-0", {"in_flight_count": 5, "retain_count": 0}),
    ("retain-17", {"retain_count": 17}),
    ("chunk-odd", {"chunk_byte_count": 65_537}),
    ("chunk-0", {"chunk_byte_count": 0}),
    ("chunk-huge", {"chunk_byte_count": 1 << 31}),
    ("capacity-1", {"chunk_capacity": 1}),
    ("capacity-huge", {"chunk_capacity": (1 << 32) - 1}),
    ("metadata-offset", {"metadata_offset": 8192}),
    ("metadata-stride-0", {"metadata_stride": 0}),
    ("data-offset-top", {"data_offset": TOP}),
    ("data-stride", {"data_stride": 4096}),
    ("slot-bytes-0", {"slot_byte_count": 0}),
    ("slot-bytes-top", {"slot_byte_count": TOP}),
    ("slot-bytes-odd", {"slot_byte_count": 73_729}),
    ("file-bytes-small", {"file_byte_count": 65_536}),
    ("file-bytes-top", {"file_byte_count": TOP - 4095}),
    ("rank", {"rank": 1}),
    ("world-0", {"world_size": 0}),
    ("creator-text", {"creator": NOT_UTF8}),
    ("creator-tail", {"creator": b"a\0b"}),
    ("fingerprint-long", {"fingerprint_byte_count": 255}),
    ("fingerprint-text", {"fingerprint_byte_count": 2, "fingerprint": NOT_UTF8}),
    ("fingerprint-tail", {"fingerprint_byte_count": 1, "fingerprint": b"ab"}),
    ("reserved-76", {"reserved_76": 1}),
    ("reserved-448", {"reserved_448": b"\1"}),
]

# Section 4.
SUPERBLOCK_RULES: list[tuple[str, dict[str, int | bytes]]] = [
    ("generation-0", {"generation": 0}),
    ("slot-80", {"slot_index": 80}),
    ("sequence-0", {"sequence": 0}),
    ("step-top", {"step": BIG}),
    ("flags", {"flags": 2}),
    ("retained-17", {"retained_count": 17}),
    ("retained-unused", {"retained_count": 1}),
    ("retained-order", {"retained_slots": bytes.fromhex("04000000000000000500000000000000"
                                                        "00000000000000000600000000000000")}),
    ("retained-twice", {"retained_slots": bytes.fromhex("00000000000000000600000000000000"
                                                        "00000000000000000500000000000000")}),
    ("retained-anchored", {"retained_count": 1, "retained_slots":
                           bytes.fromhex("01000000000000000600000000000000")}),
    ("retained-reserved", {"retained_slots": bytes.fromhex("00000000010000000600000000000000"
                                                           "04000000000000000500000000000000")}),
    ("sequence-limit", {"sequence_limit": 7}),
    ("reserved-140", {"reserved_140": 1}),
    ("attempt", {"attempt": 1 << 63}),
    ("watermark-attempt", {"watermark_attempt": 1}),
    ("reserved-424", {"reserved_424": b"\1"}),
]

# Section 5.
HEADER_RULES: list[tuple[str, dict[str, int | bytes]]] = [
    ("state-3", {"state": 3}),
    ("sequence-0", {"sequence": 0}),
    ("empty-with-sequence", {"state": 0}),
    ("step-top", {"step": BIG}),
    ("payload-top", {"payload_byte_count": TOP}),
    ("payload-large", {"payload_byte_count": 81_920}),
    ("stored-large", {"stored_byte_count": 70_001}),
    ("manifest-large", {"payload_kind": 1, "manifest_byte_count": 70_001}),
    ("opaque-manifest", {"manifest_byte_count": 8}),
    ("chunk-size", {"chunk_byte_count": 1000}),
    ("chunk-size-0", {"chunk_byte_count": 0}),
    ("chunk-count-0", {"chunk_count": 0}),
    ("chunk-count-top", {"chunk_count": (1 << 32) - 1}),
    ("codec-3", {"codec": 3}),
    ("kind-0", {"payload_kind": 0}),
    ("metadata-long", {"user_metadata_byte_count": 2049}),
    ("metadata-text", {"user_metadata_byte_count": 2, "user_metadata": NOT_UTF8}),
    ("metadata-tail", {"user_metadata_byte_count": 1, "user_metadata": b"ab"}),
    ("reserved-148", {"reserved_148": 1}),
    ("attempt", {"attempt": 1 << 63}),
    ("reserved-2208", {"reserved_2208": b"\1"}),
]

# Section 6: of the second chunk, which has 4464 bytes.
ENTRY_RULES: list[tuple[str, dict[str, int | bytes]]] = [
    ("offset-odd", {"stored_offset": 65_537}),
    ("offset-beyond", {"stored_offset": 73_728}),
    ("offset-top", {"stored_offset": TOP - 4095}),
    ("overlap", {"stored_offset": 61_440}),
    ("stored-0", {"stored_byte_count": 0}),
    ("stored-more", {"stored_byte_count": 4465}),
    ("raw-less", {"raw_byte_count": 4463}),
    ("codec-3", {"codec": 3}),
    ("codec-no-gain", {"codec": 1}),
    ("width-0", {"plane_width": 0}),
    ("width-3", {"codec": 2, "plane_width": 3, "stored_byte_count": 4000}),
    ("reserved-18", {"reserved_18": b"\1"}),
    ("reserved-40", {"reserved_40": b"\1"}),
]

PLAIN = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'

# Section 7: JSON of a manifest, over four bytes of data.
MANIFEST_RULES: list[tuple[str, str | bytes]] = [
    ("not-json", "{nonsense}"),
    ("array", "[]"),
    ("behind", f'{{"a":{PLAIN}}}x'),
    ("key-twice", f'{{"a":{PLAIN},"a":{PLAIN}}}'),
    ("inner-key-twice", '{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}'),
    ("other-key", '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}}'),
    ("no-dtype", '{"a":{"shape":[4],"data_offsets":[0,4]}}'),
    ("dtype", '{"a":{"dtype":"U9","shape":[4],"data_offsets":[0,4]}}'),
    ("half-elements", '{"a":{"dtype":"F4","shape":[9],"data_offsets":[0,4]}}'),
    ("gap", '{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}'),
    ("behind-last", '{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'),
    ("metadata-number", f'{{"__metadata__":{{"a":1}},"a":{PLAIN}}}'),
    ("not-utf8", b'{"a\xff":' + PLAIN.encode() + b"}"),
]


def cases() -> Iterator[Case]:
    yield from identities()
    yield from superblocks()
    yield from headers()
    yield from entries()
    yield from manifests()
    yield from features()


def identities() -> Iterator[Case]:
    for index, (name, values) in enumerate(IDENTITY_RULES):
        image = whole()
        # Every third rule is broken in one copy only.
        copies = image.identity_offsets[index % 2:][:1] if index % 3 == 2 else (
            image.identity_offsets)
        for offset in copies:
            image.edit(offset, IDENTITY, **values)
        is_lost = len(copies) == 2
        who = "Both identity blocks say" if is_lost else "One identity block says"
        yield case(
            f"rule-identity-{name}", f"{who} {text(values)}.",
            image, [found("I003" if is_lost else "I001")], tuple(SEQUENCES) if is_lost else ())


def superblocks() -> Iterator[Case]:
    for index, (name, values) in enumerate(SUPERBLOCK_RULES):
        image = whole()
        offset = image.superblock_offsets(10 - index // 2 % 2)[index % 2]
        image.edit(offset, SUPERBLOCK, **values)
        yield case(f"rule-superblock-{name}", f"A superblock says {text(values)}.", image,
                   [found("B001")])
    image = whole()
    for offset in image.superblock_offsets(10):
        image.edit(offset, SUPERBLOCK, step=1)
    yield case("rule-superblock-step", "The newest superblock names another step.", image,
               [found("X004", slot=ANCHORED)])


def headers() -> Iterator[Case]:
    for index, (name, values) in enumerate(HEADER_RULES):
        image = whole()
        slot = ANCHORED if index % 2 else OLDER
        image.edit(image.header_offset(slot), HEADER, **values)
        yield case(f"rule-header-{name}", f"A slot header says {text(values)}.", image,
                   header(slot, "S003"), (slot,))
    for name, values in (("own-offset", {"own_offset": 16_384}), ("index", {"slot_index": 4})):
        image = whole()
        image.edit(image.header_offset(OLDER), HEADER, **values)
        yield case(f"rule-header-{name}", f"A slot header says {text(values)}.", image,
                   header(OLDER, "S006"), (OLDER,))


def entries() -> Iterator[Case]:
    for name, values in ENTRY_RULES:
        image = whole()
        image.edit_entry(OLDER, 1, **values)
        yield case(f"rule-entry-{name}", f"A chunk table says {text(values)}.", image,
                   [found("T002", slot=OLDER)], (OLDER,))
    image = whole()
    image.edit(image.header_offset(OLDER), HEADER, stored_byte_count=69_999)
    yield case("rule-entry-sum", "A header counts other stored bytes than its table.", image,
               [found("T002", slot=OLDER)], (OLDER,))


def manifests() -> Iterator[Case]:
    for name, json_text in MANIFEST_RULES:
        image = whole()
        image.complete(OLDER, 4, manifest(json_text, b"data"))
        yield case(f"rule-manifest-{name}", f"A manifest breaks a rule: {name}.", image,
                   [found("T004", slot=OLDER, sequence=4)], (OLDER,))
    for name, content, description in (
        ("length-top", Content(SAFETENSORS, b"\xff" * 8 + bytes(4), 12), "claims 2^64 - 1 bytes"),
        ("length-outside", Content(SAFETENSORS, (5).to_bytes(8, "little") + bytes(4), 12),
         "ends outside its payload"),
        ("short", Content(SAFETENSORS, b"{}", 2), "has no room for its length"),
        ("lie", Content(SAFETENSORS, manifest("{}").data, 8), "has another size than its header"),
    ):
        image = whole()
        image.complete(OLDER, 4, content)
        yield case(f"rule-manifest-{name}", f"A manifest {description}.", image,
                   [found("T004", slot=OLDER, sequence=4)], (OLDER,))


def features() -> Iterator[Case]:
    """Section 10 and 13."""
    for name, values, items, is_lost in (
        ("minor-9", {"version_minor": 9}, [], False),
        ("major-0", {"version_major": 0}, [found("I006")], True),
        ("compat-top", {"features_compat": BIG}, [found("I010")], False),
        ("ro-compat-all", {"features_ro_compat": TOP}, [found("I009")], False),
        ("incompat-first", {"features_incompat": 1}, [found("I007")], True),
        ("compat-and-ro", {"features_compat": 1, "features_ro_compat": 2},
         [found("I009"), found("I010")], False),
    ):
        image = whole()
        for offset in image.identity_offsets:
            image.edit(offset, IDENTITY, **values)
        yield case(f"feature-{name}", f"Both identity blocks say {text(values)}.", image, items,
                   tuple(SEQUENCES) if is_lost else ())
    for name, values, item in (
        ("compat", {"features_compat": 4}, found("I010")),
        ("ro-compat", {"features_ro_compat": 4}, found("I009")),
    ):
        image = whole()
        for offset in image.identity_offsets:
            image.edit(offset, IDENTITY, **values)
        image.write(image.superblock_offsets(10)[0], bytes(512))
        image.write(image.superblock_offsets(9)[1], bytes(512))
        yield case(
            f"feature-{name}-damaged", "A feature that is not known; damage is not mended.",
            image, [item, found("B001"), found("B001", place=1)], is_refused=True)


def text(values: dict[str, int | bytes]) -> str:
    return ", ".join(f"{name} {value if isinstance(value, int) else value.hex()}"
                     for name, value in values.items())
