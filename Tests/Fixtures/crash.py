"""Crash states: every region that a commit writes, in every state that a crash can leave it in.

A is the anchored checkpoint of sequence 4 in slot 0, B the one of sequence 5 that is written to
slot 1, where sequence 2 was. `before` is the file in state C0 of spec/COMMIT.md, `after` the one in
C4. A case takes `before` and puts, region by region, what is in `after`, zeros, or garbage: an
unflushed write reaches the medium whole, in part, or not at all. What is found follows from those
states by the table in COMMIT.md and the severities in PROBLEMS.md: `expectation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from compose import BLOCK, NONE, OPAQUE, PLANES, SAFETENSORS, ZSTD, Image, noise, run
from expect import Case, Found, Resume, found

A, B, OTHER = 0, 1, 2
CODECS = {NONE: "none", ZSTD: "zstd", PLANES: "planes"}
BAD = ("zero", "garbage")


@dataclass(frozen=True)
class State:
    """What lies in each region: old, new, zero or garbage; of the header also mark or torn."""

    header: str = "new"
    table: str = "new"
    chunks: tuple[str, str, str] = ("new", "new", "new")
    anchors: tuple[str, str] = ("old", "old")

    def with_chunk(self, index: int, state: str) -> State:
        chunks = list(self.chunks)
        chunks[index] = state
        return replace(self, chunks=tuple(chunks))


OLD = State("old", "old", ("old", "old", "old"))
WRITTEN = State()
DURABLE = State(anchors=("new", "new"))


class Scene:
    """The file before and after B, for one codec and kind of payload."""

    def __init__(self, kind: int = SAFETENSORS, codec: int = NONE) -> None:
        self.kind, self.codec = kind, codec
        self.base = f"composed/{'opaque' if kind == OPAQUE else 'tensors'}-{CODECS[codec]}"
        self.before = run(4, kind=kind, codec=codec, has_notes=True)
        self.after = run(5, kind=kind, codec=codec, has_notes=True)
        self.marked = run(4, kind=kind, codec=codec, has_notes=True)
        self.marked.mark(B, 5)

    def image(self, state: State) -> bytearray:
        image = bytearray(self.before.data)

        def put(offset: int, count: int, kind: str) -> None:
            source = {"old": self.before.data, "new": self.after.data, "mark": self.marked.data}
            if kind == "torn":
                image[offset:offset + 512] = self.after.data[offset:offset + 512]
            else:
                content = {"zero": bytes(count), "garbage": noise(count, offset)}.get(kind)
                image[offset:offset + count] = content or source[kind][offset:offset + count]

        put(self.before.header_offset(B), BLOCK, state.header)
        put(self.before.table_offset(B), 3 * 48, state.table)
        for index, kind in enumerate(state.chunks):
            offset = self.before.chunk_offset(B, index)
            # Garbage fills a sector: enough to notice, and small to write down.
            room = min(self.before.chunk, self.before.capacity - index * self.before.chunk)
            put(offset, 512 if kind == "garbage" else room, kind)
        for offset, kind in zip(self.before.superblock_offsets(7), state.anchors, strict=True):
            put(offset, 512, kind)
        return image

    def case(self, name: str, description: str, state: State) -> Case:
        findings, resume = expectation(state, self.kind)
        return Case(name, description, self.base, self.image(state), findings, resume)


def expectation(state: State, kind: int) -> tuple[list[Found], Resume]:
    is_anchored = "new" in state.anchors
    # The writer did not close the file, so damage in a slot that nothing keeps is what it left.
    severity = "error" if is_anchored else "info"
    items = [found("B010"), *anchor_findings(state.anchors)]

    def slot(id: str, severity: str = severity, **options: int) -> None:
        items.append(found(id, severity, B, **options))

    is_complete = state.header in ("old", "new")
    sequence = {"old": 2, "new": 5}.get(state.header, 0)
    is_table_good = is_complete and state.table == state.header
    damaged = [index for index, chunk in enumerate(state.chunks) if chunk != state.header]
    if is_anchored and state.header != "new":
        slot("B006")
    if not is_complete:
        slot({"mark": "S001", "zero": "S004"}.get(state.header, "S003"),
             "info" if state.header == "mark" else severity)
    elif not is_table_good:
        slot("T001")
    else:
        if state.header == "new" and not is_anchored:
            slot("S002", "info")
        if state.header == "old" and is_anchored:
            slot("S008")
        if 0 in damaged and kind == SAFETENSORS:
            slot("T003", sequence=sequence)
        for index in damaged:
            slot("C001", sequence=sequence, place=index)
    if state.header == "new" and is_table_good and not damaged:
        return items, Resume(B, 5, 50, "anchored" if is_anchored else "unanchored")
    return items, Resume(A, 4, 40, "older" if is_anchored else "anchored")


def anchor_findings(anchors: tuple[str, str]) -> list[Found]:
    """Of the two copies of generation 7, where generation 5 was."""
    damaged = [copy for copy in anchors if copy in BAD]
    if len(damaged) == 2:
        return [found("B002", "warning")]
    if damaged:
        return [found("B001")]
    return [found("B004")] if anchors[0] != anchors[1] else []


def cases() -> Iterator[Case]:
    scene = Scene()
    yield from superblocks(scene)
    yield from seals(scene)
    yield from tears(scene)
    yield from lost_writes(scene)
    for kind, codec in [(SAFETENSORS, NONE), (SAFETENSORS, ZSTD), (SAFETENSORS, PLANES),
                        (OPAQUE, NONE), (OPAQUE, ZSTD)]:
        yield from chunks(scene if (kind, codec) == (SAFETENSORS, NONE) else Scene(kind, codec))


def superblocks(scene: Scene) -> Iterator[Case]:
    """State C3: the two copies of the superblock that anchors B, all else being written."""
    for head in ("old", "new", *BAD):
        for tail in ("old", "new", *BAD):
            yield scene.case(
                f"crash-anchor-{head}-{tail}",
                f"A crash while the superblock is written: {head} at the head, {tail} at the tail.",
                replace(WRITTEN, anchors=(head, tail)))


def seals(scene: Scene) -> Iterator[Case]:
    """States C1t and C1u: header and chunk table, all chunks being written."""
    for header in ("old", "mark", "new", *BAD):
        for table in ("old", "new", *BAD):
            if (header, table) != ("new", "new"):
                yield scene.case(
                    f"crash-seal-{header}-{table}",
                    f"A crash before the first barrier: {header} header, {table} chunk table.",
                    replace(WRITTEN, header=header, table=table))


def tears(scene: Scene) -> Iterator[Case]:
    """Writes that end within a block, at each sector that matters and at some that do not."""
    start = scene.before.header_offset(B)
    for count in range(1, 6):
        case = scene.case(f"crash-torn-header-{count}",
                          f"The header's first {count} sectors were written.",
                          replace(WRITTEN, header="torn"))
        case.image[start:start + 512 * count] = scene.after.data[start:start + 512 * count]
        yield case
    case = scene.case("crash-torn-header-last", "Only the header's last sector was written.",
                      replace(WRITTEN, header="torn"))
    case.image[start:start + 512] = scene.before.data[start:start + 512]
    case.image[start + 3584:start + BLOCK] = scene.after.data[start + 3584:start + BLOCK]
    yield case
    for sector, word in ((1, "second"), (7, "last")):
        case = scene.case(
            f"crash-torn-superblock-{sector}",
            f"Garbage in the {word} sector of a superblock, which nobody reads.", DURABLE)
        offset = scene.before.superblock_offsets(7)[0] + 512 * sector
        case.image[offset:offset + 512] = noise(512, sector)
        yield case
    case = scene.case(
        "crash-torn-superblock-eight-bytes", "Eight bytes of the tail's copy are those of before.",
        replace(WRITTEN, anchors=("new", "garbage")))
    offset = scene.before.superblock_offsets(7)[1]
    case.image[offset:offset + 512] = scene.after.data[offset:offset + 512]
    case.image[offset + 24:offset + 32] = scene.before.data[offset + 24:offset + 32]
    yield case


def lost_writes(scene: Scene) -> Iterator[Case]:
    """A medium that lied about its flush: B is anchored, and something of it was never written."""
    for header in ("old", "mark", *BAD):
        yield scene.case(f"lost-header-{header}", f"B is anchored; its header is {header}.",
                         replace(DURABLE, header=header))
    for table in ("old", *BAD):
        yield scene.case(f"lost-table-{table}", f"B is anchored; its chunk table is {table}.",
                         replace(DURABLE, table=table))
    yield scene.case("lost-seal", "B is anchored; header and chunk table are those of before.",
                     replace(DURABLE, header="old", table="old"))
    yield scene.case("lost-slot", "B is anchored; its whole slot is that of before.",
                     replace(OLD, anchors=("new", "new")))
    yield scene.case("lost-chunks", "B is anchored; none of its chunks was written.",
                     replace(DURABLE, chunks=OLD.chunks))
    yield scene.case(
        "lost-everything-but-a-superblock", "One copy of the superblock is all of B that is there.",
        replace(OLD, anchors=("new", "zero")))


def chunks(scene: Scene) -> Iterator[Case]:
    """States C1 and C1u: single chunks."""
    end = scene.base.removeprefix("composed/")
    places = [(0, "garbage"), (1, "old"), (2, "zero")]
    for index, kind in places:
        yield scene.case(
            f"crash-chunk-{index}-{kind}-{end}",
            f"A crash before the first barrier: the header is new, chunk {index} {kind}.",
            WRITTEN.with_chunk(index, kind))
        yield scene.case(
            f"lost-chunk-{index}-{kind}-{end}", f"B is anchored; chunk {index} is {kind}.",
            DURABLE.with_chunk(index, kind))
    yield scene.case(f"crash-marked-{end}", "A crash while chunks are written.",
                     State("mark", "old", ("new", "old", "garbage")))
    yield scene.case(
        f"crash-unmarked-{end}",
        "A crash while chunks are written; the mark did not reach the medium, a chunk did.",
        OLD.with_chunk(1, "new"))
    yield scene.case(f"crash-before-{end}", "A crash right after the mark.",
                     replace(OLD, header="mark"))


def bases() -> list[tuple[str, str, Image]]:
    """The files in state C0."""
    result = []
    for kind, codec in [(SAFETENSORS, NONE), (SAFETENSORS, ZSTD), (SAFETENSORS, PLANES),
                        (OPAQUE, NONE), (OPAQUE, ZSTD)]:
        scene = Scene(kind, codec)
        description = f"Four saves of {scene.base.removeprefix('composed/')}, not closed."
        result.append((scene.base, description, scene.before))
    return result
