"""Files of unusual shape: cut short, at the ends of the numbers, very small, with many slots."""

from __future__ import annotations

from collections.abc import Iterator

from compose import BLOCK, OPAQUE, SUPERBLOCK, Image, noise, run
from damage import BASE, KEPT, SEQUENCES, whole
from expect import Case, Found, Resume, found

TOP = (1 << 64) - 1
LAST_STEP = (1 << 63) - 1


def limits() -> Image:
    """The last generation, the last sequence, the last step."""
    return run(
        4, kind=OPAQUE, count=5000, capacity=8192, generation=TOP - 4, sequence=TOP - 5,
        step=LAST_STEP - 4, is_closed=False)


SHAPES: list[tuple[str, str, dict]] = [
    ("smallest", "One slot in flight and one kept, of 4 KiB each.",
     dict(in_flight=1, retain=1, capacity=4096, count=4000)),
    ("most-slots", "80 slots: 64 in flight, 16 kept.",
     dict(in_flight=64, retain=16, capacity=4096, count=3000)),
    ("large-chunks", "Chunks of 256 MiB in slots of 8 KiB.",
     dict(chunk=256 << 20, capacity=8192, count=5000)),
    ("many-chunks", "A chunk table of two blocks.",
     dict(capacity=90 * 65_536 // 8, chunk=65_536, count=500_000)),
    ("huge-pages", "Slots that begin at 2 MiB.",
     dict(in_flight=1, retain=1, capacity=2 << 20, count=100_000)),
    ("device", "The size of a device: the tail lies far behind the slots.",
     dict(capacity=8192, file_byte_count=1 << 20, count=5000)),
    ("empty-payloads", "Payloads without a byte.", dict(capacity=4096, count=0)),
    ("last-rank", "The last rank of many, with the longest fingerprint.",
     dict(capacity=8192, count=5000, rank=(1 << 32) - 2, world_size=(1 << 32) - 1,
          fingerprint_byte_count=254, fingerprint=b"f" * 254)),
    ("rank-of-group", "A rank of a group, whose newest step is not known to be on all ranks.",
     dict(capacity=8192, count=5000, retain=2, rank=1, world_size=2,
          run_uuid=bytes(range(0x40, 0x50)), save_options=dict(attempt=3),
          commit_options=dict(attempt=3, watermark_attempt=3, watermark_step=20))),
    ("times", "Times at both ends of their range.",
     dict(capacity=8192, count=5000, created_time=0,
          save_options=dict(began_time=TOP, completed_time=0))),
    ("metadata", "The longest user metadata, which is no ASCII.",
     dict(capacity=8192, count=5000, save_options=dict(
         user_metadata_byte_count=2048, user_metadata="ж".encode() * 1024))),
]


SHAPES_BY_NAME = {name: options for name, _, options in SHAPES}


def shape(options: dict) -> Image:
    return run(3, kind=OPAQUE, is_closed=True, **options)


def cases() -> Iterator[Case]:
    yield from truncations()
    yield from lost_ends()
    yield from appended()
    yield from at_limits()
    for name, description, options in SHAPES:
        yield from damaged_shape(name, description, options)


def truncations() -> Iterator[Case]:
    """Cut at each border of a region, and within some."""
    image = whole()
    data = image.chunk_offset(0)
    stride = image.data_stride
    sizes = [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK, 5 * BLOCK,
             *(image.header_offset(slot) for slot in (1, 2, 5)), data + 100, data + 65_536,
             *(data + slot * stride for slot in (1, 2, 3, 4, 5)), data + stride + 65_536,
             image.byte_count - 2 * BLOCK, image.byte_count - BLOCK, image.byte_count - 1]
    for size in sizes:
        copy = whole()
        del copy.data[size:]
        # Behind the slots lie copies only.
        resume = Resume(1, 7, 70) if size >= image.slots_end else None
        yield Case(f"truncated-{size:06}", f"Only the first {size} bytes are there.", BASE,
                   copy.data, truncation(image, size), resume, is_refused=True)


def lost_ends() -> Iterator[Case]:
    """Only copies are missing, and perhaps more is wrong."""
    def cut(size: int, *blocks: int) -> Image:
        image = whole()
        del image.data[size:]
        for offset in blocks:
            image.write(offset, noise(512, offset))
        return image

    image = whole()
    end, newest, previous = image.slots_end, *(
        image.superblock_offsets(generation)[0] for generation in (10, 9))
    resume = Resume(1, 7, 70)
    for count in (100, 600, BLOCK + 100, 2 * BLOCK + 4000):
        copy = cut(end + count)
        yield Case(f"end-lost-{count}", f"{count} bytes behind the slots are there.", BASE,
                   copy.data, [found("I013")], resume)
    # What is beside the end is a copy that is left alone, and then gone altogether.
    yield Case("end-lost-newest", "The end, and the other copy of the newest superblock.", BASE,
               cut(end, newest).data, [found("I013"), found("B002", "warning"), found("B010")],
               resume)
    yield Case("end-lost-previous", "The end, and the other copy of the previous one.", BASE,
               cut(end, previous).data, [found("I013"), found("B002", "error")], resume)
    items = [found("I013"), found("B003"), *(found("S002", slot=slot) for slot in range(5))]
    yield Case("end-lost-superblocks", "The end, and both superblocks at the head.", BASE,
               cut(end, newest, previous).data, items, Resume(1, 7, 70, "unanchored"))
    yield Case("end-lost-identity", "The end, and the identity block at the head.", BASE,
               cut(end, 0).data, [found("I004")], None)
    base = "composed/device"
    options = dict(SHAPES_BY_NAME["device"])
    image = shape(options)
    for name, size in (("gap", image.slots_end + 5000), ("exact", image.slots_end)):
        copy = shape(options)
        del copy.data[size:]
        yield Case(f"end-lost-device-{name}", "A copy of a device that ends before its tail.", base,
                   copy.data, [found("I013")], Resume(2, 3, 30))


def truncation(image: Image, size: int) -> list[Found]:
    """A file without a whole block is none. Else what lies outside is not damaged, but gone: only
    what is kept, or looks loadable and is not whole, is worth a word."""
    if size < BLOCK:
        return [found("I004")]
    if size >= image.slots_end:
        return [found("I013")]
    items = [found("I008")]
    if size < 2 * BLOCK:
        return [*items, found("B003")]
    # The newest superblock's head is there from two blocks on: generation 10 is even.
    severity = {slot: "error" if slot in KEPT else "warning" for slot in SEQUENCES}
    for slot, sequence in SEQUENCES.items():
        if size < image.header_offset(slot) + BLOCK:
            if slot in KEPT:
                is_newest = slot == KEPT[0]
                items.append(found("B006" if is_newest else "X002", slot=slot,
                                   place=KEPT.index(slot)))
            continue
        if size < image.table_offset(slot) + BLOCK:
            items.append(found("T001", severity[slot], slot))
            if slot in KEPT[1:]:
                items.append(found("X002", slot=slot, place=KEPT.index(slot)))
            continue
        for index, count in ((0, 65_536), (1, 4464)):
            if size < image.chunk_offset(slot, index) + count:
                items.append(found("C003", "error", slot, sequence, index))
    return items


def appended() -> Iterator[Case]:
    for count in (1, BLOCK - 1, BLOCK, 10_000):
        image = whole()
        image.data += b"*" * count
        # Less than a block may be a device's end.
        items = [found("I011")] if count >= BLOCK else []
        yield Case(f"appended-{count:05}", f"{count} bytes behind the end.", BASE, image.data,
                   items, Resume(1, 7, 70))
    image = whole()
    image.data += bytes(image.data)
    yield Case("appended-twin", "The whole file a second time behind its end.", BASE, image.data,
               [found("I011")], Resume(1, 7, 70))


def at_limits() -> Iterator[Case]:
    base = "composed/limits"
    newest = Resume(0, TOP - 1, LAST_STEP)
    for name, place in (("head", 0), ("tail", 1)):
        image = limits()
        image.write(image.superblock_offsets(TOP)[place], bytes(512))
        yield Case(f"limits-superblock-{name}", "A copy of the last generation there is, zero.",
                   base, image.data, [found("B010"), found("B001")], newest)
    image = limits()
    for offset in image.superblock_offsets(TOP):
        image.write(offset, noise(512, offset))
    yield Case(
        "limits-superblock-both", "Both copies of the last generation.", base, image.data,
        [found("B010"), found("B002", "warning"), found("S002", slot=0)],
        Resume(0, TOP - 1, LAST_STEP, "unanchored"))
    image = limits()
    image.mark(1, TOP, 0)
    yield Case("limits-torn", "The last sequence was given, and its checkpoint is torn.", base,
               image.data, [found("B010"), found("S001", slot=1)], newest)
    image = limits()
    for offset in image.superblock_offsets(TOP):
        image.edit(offset, SUPERBLOCK, sequence_limit=TOP)
    yield Case("limits-sequence-limit", "Every sequence below the last may have been given.", base,
               image.data, [found("B010")], newest)
    image = limits()
    for offset in image.superblock_offsets(TOP):
        image.edit(offset, SUPERBLOCK, generation=1)
    # The number wrapped: what was TOP - 1 is the newest again.
    yield Case("limits-generation-wrapped", "A generation that wrapped around.", base, image.data,
               [found("B010"), found("S002", slot=0)], Resume(0, TOP - 1, LAST_STEP, "unanchored"))


def damaged_shape(name: str, description: str, options: dict) -> Iterator[Case]:
    """Each shape with its mirror, a superblock and its anchored slot damaged."""
    base = f"composed/{name}"
    image = shape(options)
    anchored = 2 % image.slot_count
    fallback = 1
    kind = "retained" if image.retain > 1 else "older"
    values = [
        ("mirror", image.identity_offsets[1], [found("I001")], Resume(anchored, 3, 30)),
        ("superblock", image.superblock_offsets(6)[1], [found("B001")], Resume(anchored, 3, 30)),
        ("anchored", image.header_offset(anchored),
         [found("B006", slot=anchored), found("S004", slot=anchored)],
         Resume(fallback, 2, 20, kind)),
    ]
    for region, offset, items, resume in values:
        copy = shape(options)
        copy.write(offset, bytes(BLOCK))
        yield Case(f"shape-{name}-{region}", f"{description} Its {region} is zero.", base,
                   copy.data, items, resume)


def bases() -> list[tuple[str, str, Image]]:
    shapes = [(f"composed/{name}", description, shape(options))
              for name, description, options in SHAPES]
    return [*shapes, ("composed/limits", "The last generation, sequence and step.", limits())]
