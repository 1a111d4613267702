"""Damage of a file that was closed: every region, by every kind of damage.

The base keeps three checkpoints: 7 in slot 1 is anchored, 6 in slot 0 and 5 in slot 4 are retained,
4 in slot 3 and 3 in slot 2 are left over. Generation 10 is the closing superblock, 9 anchored 7.
What is found follows from what a region is for: `header`, `table` and `chunk` below.
"""

from __future__ import annotations

from collections.abc import Iterator

from compose import (
    BLOCK, HEADER, NO_SLOT, OPAQUE, OTHER_UUID, SUPERBLOCK, Image, noise, run, seal)
from expect import Case, Found, Resume, found

ANCHORED, RETAINED, RETAINED2, OLDER, OLDEST = 1, 0, 4, 3, 2
SEQUENCES = {ANCHORED: 7, RETAINED: 6, RETAINED2: 5, OLDER: 4, OLDEST: 3}
KEPT = (ANCHORED, RETAINED, RETAINED2)
ROLES = {ANCHORED: "anchored", RETAINED: "retained", OLDER: "older"}
BASE = "composed/three-kept"
OPTIONS = dict(kind=OPAQUE, retain=3, is_closed=True, count=70_000, capacity=73_728)


def whole() -> Image:
    return run(7, **OPTIONS)


def foreign() -> Image:
    """Another file of the same geometry, one save behind."""
    return run(6, **OPTIONS, uuid=OTHER_UUID)


def resume(*lost: int) -> Resume | None:
    """The newest checkpoint that is in none of the lost slots."""
    for slot, sequence in SEQUENCES.items():
        if slot not in lost:
            kind = "anchored" if slot == ANCHORED else "retained" if slot in KEPT else "older"
            return Resume(slot, sequence, sequence * 10, kind)
    return None


def header(slot: int, id: str) -> list[Found]:
    """An unusable header: of damage (S003, S004) in a slot that nothing keeps, after a clean
    close, a warning; what came from elsewhere is an error anywhere."""
    is_damage = id in ("S003", "S004") and slot not in KEPT
    items = [found(id, "warning" if is_damage else "error", slot)]
    if slot == ANCHORED:
        items.append(found("B006", slot=slot))
    elif slot in KEPT:
        items.append(found("X002", slot=slot, place=KEPT.index(slot)))
    return items


def table(slot: int) -> list[Found]:
    items = [found("T001", "error" if slot in KEPT else "warning", slot)]
    if slot in KEPT and slot != ANCHORED:
        items.append(found("X002", slot=slot, place=KEPT.index(slot)))
    return items


def chunk(slot: int, index: int = 0) -> Found:
    return found("C001", "error" if slot in KEPT else "warning", slot, SEQUENCES[slot], index)


def case(
    name: str, description: str, image: Image, items: list[Found], lost: tuple[int, ...] = (),
    **options,
) -> Case:
    return Case(name, description, BASE, image.data, items, resume(*lost), **options)


def cases() -> Iterator[Case]:
    yield from identities()
    yield from superblocks()
    yield from slots()
    yield from strays()
    yield from several()
    yield from half_repaired()
    yield from two_writers()


def damaged(offset: int, kind: str, count: int = BLOCK) -> Image:
    """The base with a block zeroed, full of garbage, or that of another file."""
    image = whole()
    content = {"zero": bytes(count), "garbage": noise(512, offset)}.get(kind)
    image.write(offset, content or bytes(foreign().data[offset:offset + count]))
    return image


def identities() -> Iterator[Case]:
    """The two identity blocks. One lost copy is no loss."""
    for place, name in enumerate(("head", "mirror")):
        for kind in ("zero", "garbage"):
            offset = whole().identity_offsets[place]
            yield case(f"damage-identity-{name}-{kind}", f"The {name} of the identity is {kind}.",
                       damaged(offset, kind), [found("I001")])
    yield case("damage-identity-mirror-foreign", "The mirror is that of another file.",
               damaged(whole().identity_offsets[1], "foreign"), [found("I002")])
    # The head's copy is believed, so that all else is of another file.
    image = damaged(0, "foreign")
    items = [found("I002"), found("B003"), found("X001")]
    items += [found("S005", slot=slot) for slot in range(5)]
    yield case("damage-identity-head-foreign", "The head is that of another file.", image, items,
               tuple(SEQUENCES))
    image = damaged(0, "garbage")
    image.write(image.identity_offsets[1], noise(512, 5))
    yield case("damage-identity-both-garbage", "Both copies of the identity are garbage.", image,
               [found("I004")], tuple(SEQUENCES))


def superblocks() -> Iterator[Case]:
    """The four copies of the two superblocks."""
    for generation, age in ((10, "newest"), (9, "previous")):
        for place, name in enumerate(("head", "tail")):
            for kind in ("zero", "garbage", "foreign"):
                offset = whole().superblock_offsets(generation)[place]
                id = "B007" if kind == "foreign" else "B001"
                yield case(
                    f"damage-superblock-{age}-{name}-{kind}",
                    f"The copy at the {name} of the {age} superblock is {kind}.",
                    damaged(offset, kind, 512), [found(id)])
    # After a clean close both copies are there; generation 9 was not, and is what is left.
    image = damaged(whole().superblock_offsets(10)[0], "garbage")
    image.write(image.superblock_offsets(10)[1], bytes(512))
    yield case("damage-superblock-newest-both", "Neither copy of the newest superblock is whole.",
               image, [found("B002", "warning"), found("B010")])
    image = damaged(whole().superblock_offsets(9)[0], "garbage")
    image.write(image.superblock_offsets(9)[1], noise(512, 6))
    yield case("damage-superblock-previous-both", "Neither copy of the previous superblock is.",
               image, [found("B002", "error")])
    image = whole()
    for generation in (9, 10):
        for offset in image.superblock_offsets(generation):
            image.write(offset, bytes(512))
    # All headers stand alone: each checkpoint is unanchored, newest first.
    items = [found("B003"), *(found("S002", slot=slot) for slot in range(5))]
    yield Case("damage-superblocks-zero", "All four copies are zero.", BASE, image.data, items,
               Resume(ANCHORED, 7, 70, "unanchored"))


def slots() -> Iterator[Case]:
    """Header, chunk table and chunks of each kind of slot."""
    for slot, role in ROLES.items():
        for kind, id in (("zero", "S004"), ("garbage", "S003"), ("foreign", "S005")):
            yield case(
                f"damage-header-{role}-{kind}", f"The header of the {role} slot is {kind}.",
                damaged(whole().header_offset(slot), kind), header(slot, id), (slot,))
        for kind in ("zero", "garbage"):
            yield case(
                f"damage-table-{role}-{kind}", f"The chunk table of the {role} slot is {kind}.",
                damaged(whole().table_offset(slot), kind, 96), table(slot), (slot,))
        for index, kind in ((0, "garbage"), (1, "zero")):
            yield case(
                f"damage-chunk-{role}-{index}-{kind}",
                f"Chunk {index} of the {role} slot is {kind}.",
                damaged(whole().chunk_offset(slot, index), kind, 4464), [chunk(slot, index)],
                (slot,))


def strays() -> Iterator[Case]:
    """Writes that went to another place: whole blocks, where they do not belong."""
    def moved(source: int, target: int, count: int = BLOCK) -> Image:
        image = whole()
        image.write(target, bytes(image.data[source:source + count]))
        return image

    image = whole()
    place = {slot: image.header_offset(slot) for slot in range(5)}
    for slot, role in ROLES.items():
        yield case(f"stray-header-{role}", f"The header of another slot in the {role} one's place.",
                   moved(place[OLDEST], place[slot]), header(slot, "S006"), (slot,))
        yield case(f"stray-table-{role}", f"The chunk table of another slot in the {role} one's.",
                   moved(place[OLDEST] + BLOCK, place[slot] + BLOCK), table(slot), (slot,))
        yield case(
            f"stray-chunk-{role}", f"A chunk of another slot in the {role} one's place.",
            moved(image.chunk_offset(OLDEST), image.chunk_offset(slot), image.chunk),
            [chunk(slot)], (slot,))
    newest, previous = image.superblock_offsets(10), image.superblock_offsets(9)
    yield case("stray-superblock-parity", "The newest superblock over the previous one's head.",
               moved(newest[0], previous[0]), [found("B007")])
    yield case("stray-identity-superblock", "The identity block over a superblock.",
               moved(0, newest[1]), [found("B001")])
    yield case("stray-superblock-identity", "A superblock over the head's identity block.",
               moved(newest[0], 0), [found("I001")])
    yield case("stray-superblock-header", "A superblock over the anchored slot's header.",
               moved(newest[0], place[ANCHORED]), header(ANCHORED, "S003"), (ANCHORED,))
    yield case("stray-header-superblock", "A slot header over a superblock.",
               moved(place[ANCHORED], newest[0]), [found("B001")])
    yield case("stray-header-reserved", "A slot header in the reserved block.",
               moved(place[ANCHORED], 3 * BLOCK), [found("X005")])
    yield case("stray-chunk-header", "A chunk over a header.",
               moved(image.chunk_offset(ANCHORED), place[OLDER]), header(OLDER, "S003"), (OLDER,))
    yield case(
        "stray-chunks-tail", "A chunk over the whole tail.",
        moved(image.chunk_offset(ANCHORED), newest[1], 3 * BLOCK),
        [found("I001"), found("B001"), found("B001", place=1)])
    yield case("stray-header-chunk", "A header over the first chunk of a retained slot.",
               moved(place[ANCHORED], image.chunk_offset(RETAINED)), [chunk(RETAINED)],
               (RETAINED,))
    for count, word in ((512, "a sector"), (BLOCK, "a block")):
        image = whole()
        image.data[:] = (bytes(count) + bytes(image.data))[:image.byte_count]
        # A superblock where the mirror should be tells that this was a checkpoint file.
        id = "I003" if count == BLOCK else "I004"
        yield case(f"stray-shift-{count}", f"Everything lies {word} too far.", image, [found(id)],
                   tuple(SEQUENCES))


def several() -> Iterator[Case]:
    """More than one loss: what is left is used."""
    lost: list[int] = []
    items: list[Found] = []
    image = whole()
    for slot in SEQUENCES:
        image.write(image.chunk_offset(slot, 1), noise(512, slot))
        lost.append(slot)
        items = [*items, chunk(slot, 1)]
        extra = [found("X001")] if len(lost) == len(SEQUENCES) else []
        if len(lost) > 1:
            copy = whole()
            copy.data[:] = image.data
            yield case(f"several-chunks-{len(lost)}", f"The {len(lost)} newest are damaged.", copy,
                       items + extra, tuple(lost))
    image = damaged(whole().header_offset(ANCHORED), "garbage")
    image.write(image.table_offset(RETAINED), bytes(96))
    image.write(image.chunk_offset(RETAINED2), noise(512, 9))
    yield case("several-kept", "A header, a table and a chunk: all that was kept.", image,
               [*header(ANCHORED, "S003"), *table(RETAINED), chunk(RETAINED2)], KEPT)
    image = damaged(0, "garbage")
    image.write(image.superblock_offsets(10)[0], bytes(512))
    image.write(image.superblock_offsets(9)[1], noise(512, 10))
    yield case("several-copies", "One copy of everything that has two.", image,
               [found("I001"), found("B001"), found("B001", place=1)])
    image = damaged(0, "zero")
    for generation in (9, 10):
        image.write(image.superblock_offsets(generation)[0], bytes(512))
    yield case("several-head", "The whole head is zero.", image,
               [found("I001"), found("B001"), found("B001", place=1)])
    image = damaged(whole().superblock_offsets(10)[0], "garbage")
    image.write(image.superblock_offsets(10)[1], bytes(512))
    image.write(image.header_offset(ANCHORED), noise(512, 11))
    # Generation 9 is an older word for the same anchor, of a file that it does not call closed.
    yield case("several-newest-and-anchored", "The newest superblock and what it anchors.", image,
               [found("B002", "warning"), found("B010"), *header(ANCHORED, "S003")], (ANCHORED,))
    image = whole()
    image.write(0, bytes(image.header_offset(5)))
    yield case("several-metadata", "Everything before the data is zero.", image,
               [found("I001"), found("B001"), found("B001", place=1), found("X001"),
                *(item for slot in SEQUENCES for item in header(slot, "S004"))],
               tuple(SEQUENCES))


def half_repaired() -> Iterator[Case]:
    """A repair that was interrupted: the block that it wrote is torn, and its source whole."""
    image = whole()
    for count in (512, 2048, 4080):
        copy = whole()
        copy.write(count, noise(BLOCK - count, count) if count > 512 else bytes(BLOCK - count))
        yield case(f"repair-identity-{count}", f"{count} bytes of the head were written again.",
                   copy, [found("I001")])
    for count in (128, 496):
        copy = whole()
        offset = image.superblock_offsets(10)[1]
        copy.write(offset + count, noise(512 - count, count))
        yield case(f"repair-superblock-{count}", f"{count} bytes of a superblock were.", copy,
                   [found("B001")])
    copy = whole()
    copy.write(image.superblock_offsets(9)[0] + 256, bytes(256))
    copy.write(image.identity_offsets[1] + 512, bytes(BLOCK - 512))
    yield case("repair-first-of-two", "Two repairs were planned; both blocks are torn.", copy,
               [found("I001"), found("B001")])


def two_writers() -> Iterator[Case]:
    """Two writers at one file."""
    image = whole()
    copy = image.superblock_offsets(10)[1]
    image.edit(copy, SUPERBLOCK, writer_pid=7)
    yield case("writers-fork-closing", "Two closing superblocks of one generation.", image,
               [found("B005")])
    # A copy that names nothing vouches for nothing: the other one is followed, wherever it lies.
    nothing = dict(sequence=0, step=0, slot_index=NO_SLOT, retained_count=0,
                   retained_slots=bytes(256))
    for place, name in enumerate(("head", "tail")):
        image = whole()
        image.edit(image.superblock_offsets(10)[place], SUPERBLOCK, **nothing)
        yield case(f"writers-fork-nothing-{name}", f"The copy at the {name} names nothing.", image,
                   [found("B005")])
    image = whole()
    image.edit(image.superblock_offsets(10)[0], SUPERBLOCK, **nothing)
    image.write(image.header_offset(ANCHORED), noise(512, 12))
    yield case(
        "writers-fork-nothing-lost", "A copy names nothing, the other one what is not there.",
        image, [found("B005"), *header(ANCHORED, "S003")], (ANCHORED,))
    # A value that this version does not know is kept, and digests are those that are stored.
    image = whole()
    for place in image.superblock_offsets(9):
        image.edit(place, SUPERBLOCK, storage_kind=9)
    parent = seal(image.block(image.superblock_offsets(9)[0]), SUPERBLOCK)
    for place in image.superblock_offsets(10):
        image.edit(place, SUPERBLOCK, parent_digest=parent)
    yield case("writers-unknown-kind", "The previous writer used a storage that is not known.",
               image, [])
    image = whole()
    for kind, place in enumerate(image.superblock_offsets(10), 9):
        image.edit(place, SUPERBLOCK, storage_kind=kind)
    yield case("writers-fork-unknown-kind", "Two copies differ in a value that is not known.",
               image, [found("B005")])
    image = whole()
    image.edit(image.superblock_offsets(9)[0], SUPERBLOCK, commit_time=1)
    # One of the two is what generation 10 was written after.
    yield case("writers-fork-previous", "Two previous superblocks of one generation.", image,
               [found("B005")])
    image = whole()
    for place in image.superblock_offsets(9):
        image.edit(place, SUPERBLOCK, writer_pid=7)
    yield case("writers-turns", "The previous superblock is another writer's.", image,
               [found("B009")])
    image = whole()
    image.edit(image.header_offset(OLDER), HEADER, sequence=6)
    yield case("writers-sequence", "Another writer gave a sequence again.", image,
               [found("X003", slot=OLDER)])
    image = whole()
    image.edit(image.header_offset(OLDER), HEADER, sequence=7)
    # The anchored one of the two goes first.
    yield case("writers-sequence-anchored", "Another writer gave the newest sequence again.", image,
               [found("X003", slot=OLDER)])
    image = whole()
    image.edit(image.header_offset(OLDEST), HEADER, sequence=9, step=90)
    yield Case("writers-newer", "A newer checkpoint than a cleanly closed file may hold.", BASE,
               image.data, [found("S002", slot=OLDEST)], Resume(OLDEST, 9, 90, "unanchored"))
    image = whole()
    image.edit(image.header_offset(RETAINED), HEADER, sequence=1, step=10)
    yield case(
        "writers-retained-stale", "A retained slot holds an older checkpoint.", image,
        [found("S008", slot=RETAINED), found("X002", slot=RETAINED)], (RETAINED,))
    image = whole()
    image.anchor_again(10, OLDER)
    for offset in image.superblock_offsets(10):
        image.edit(offset, SUPERBLOCK, retained_count=0, retained_slots=bytes(256))
    # What is newer than the anchor is not anchored.
    yield Case(
        "writers-went-back", "The newest superblock anchors an older checkpoint.", BASE, image.data,
        [found("S002", slot=slot) for slot in (RETAINED, ANCHORED, RETAINED2)],
        Resume(ANCHORED, 7, 70, "unanchored"))


def bases() -> list[tuple[str, str, Image]]:
    return [(BASE, "Seven opaque saves in a file that keeps three, closed.", whole())]
