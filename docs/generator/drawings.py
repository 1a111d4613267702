"""The five pictures of "How it works", each in the place of `<!-- drawing NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Callable

from repository import ROOT, DocumentationError
from svg import WIDTH, Drawing

_DIRECTIVE = re.compile(r"^<!-- drawing (\S+) -->$", re.M)


def placed(markdown: str) -> str:
    def drawing(found: re.Match[str]) -> str:
        if found[1] not in _DRAWINGS:
            raise DocumentationError(f"there is no drawing {found[1]}: {', '.join(_DRAWINGS)}")
        return _DRAWINGS[found[1]]()

    return _DIRECTIVE.sub(drawing, markdown)


def _slots() -> str:
    """Time runs to the right. A slot is free again once a newer checkpoint is durable."""
    d = Drawing("slots", "Three slots over time: two are filled while one is durable")
    d.text(0, 16, "training", "strong")
    for index in range(7):
        is_saved = index % 2 == 0
        x = 76 + index * 56
        d.box(x, 0, 54, 24, "blue" if is_saved else "paper")
        d.text(x + 27, 17, str(100 + index * 5), "", "middle")
    # Each row: where filling begins and ends, and where the checkpoint is superseded.
    rows = [
        ("slot 0", [(76, 216, 328, "100"), (412, 480, 480, "130")]),
        ("slot 1", [(188, 328, 412, "110")]),
        ("slot 2", [(300, 412, 480, "120")]),
    ]
    for row, (name, spans) in enumerate(rows):
        y = 44 + row * 48
        d.text(0, y + 22, name, "strong")
        d.box(76, y, WIDTH - 76, 34, "empty")
        for begin, durable, end, step in spans:
            d.box(begin, y, durable - begin, 34, "amber")
            d.text((begin + durable) / 2, y + 22, step, "strong", "middle")
            if end > durable:
                d.box(durable, y, end - durable, 34, "green")
                d.text((durable + end) / 2, y + 22, step, "strong", "middle")
    y = 196
    d.text(0, y + 19, "after a", "strong")
    d.text(0, y + 35, "crash", "strong")
    for begin, end, words in [(76, 216, "at the start"), (216, 328, "100"), (328, 412, "110"),
                              (412, 480, "120")]:
        d.line((begin + 2, y + 6), (end - 2, y + 6), kind="range")
        d.text((begin + end) / 2, y + 26, words, "", "middle")
    d.box(76, 248, 14, 14, "amber")
    d.text(98, 260, "in flight", "small")
    d.box(186, 248, 14, 14, "green")
    d.text(208, 260, "durable", "small")
    d.box(296, 248, 14, 14, "empty")
    d.text(318, 260, "free, or no longer named", "small")
    return d.html(266, "in_flight = 2 and retain = 1: three slots. Time runs to the right.")


def _pipeline() -> str:
    d = Drawing("pipeline", "From the tensors through the staging pool into a slot of the file")
    stages = [
        ("blue", "tensors", "on the accelerator, or in host memory"),
        ("paper", "snapshot workers", "copy and digest each chunk in one pass"),
        ("amber", "staging pool", "fixed memory; when it is full, the copy waits"),
        ("paper", "writer workers", "compress if asked; write the oldest checkpoint first"),
        ("green", "slot", "of the checkpoint file"),
    ]
    for index, (kind, name, words) in enumerate(stages):
        y = index * 84
        d.label(0, y, 356, 54, kind, name, words)
        if index:
            d.line((178, y - 30), (178, y - 2), arrow=True)
    d.text(370, 24, "save() reads", "small")
    d.text(370, 41, "what is here", "small")
    d.line((366, 168), (366, 222), kind="range")
    d.text(376, 190, "staged:", "strong")
    d.text(376, 207, "your memory", "small")
    d.text(376, 222, "is free again", "small")
    d.line((366, 336), (366, 390), kind="range")
    d.text(376, 358, "durable:", "strong")
    d.text(376, 375, "after the commit", "small")
    return d.html(394, "From the accelerator to the slot. The staging pool bounds the memory.")


_COMMIT_STEPS = [
    ("mark", "slot header in state writing", "paper"),
    ("chunks", "every chunk, in any order", "amber"),
    ("seal", "header in state complete, chunk table", "paper"),
    ("F1", "first barrier: fdatasync", "barrier"),
    ("anchor", "both copies of superblock g + 1", "paper"),
    ("F2", "second barrier: fdatasync, read back", "barrier"),
    ("release", "slots that it does not name are free", "green"),
]
# The crash states of COMMIT.md, what recovery loads, and the steps between which they are.
_CRASHES = [
    ("C0", "A", -0.5, 0.2),
    ("C1", "A", 0.35, 1.8),
    ("C1t", "A", 1.95, 2.3),
    ("C1u", "A, or B if intact", 2.45, 3.2),
    ("C2", "B, verified", 3.35, 3.7),
    ("C3", "B", 3.85, 5.2),
    ("C4", "B", 5.35, 6.2),
    ("C5", "B", 6.35, 6.9),
]


def _commit() -> str:
    _compare_crash_states()
    d = Drawing("commit", "The steps of a commit, its two barriers, and what each crash leaves")
    top, pitch = 44, 62
    d.text(0, 14, "step", "strong")
    d.text(304, 14, "crash", "strong")
    d.text(362, 14, "recovery loads", "strong")
    for index, (name, words, kind) in enumerate(_COMMIT_STEPS):
        y = top + index * pitch
        d.label(0, y, 292, 44, kind, name, words)
        if index:
            d.line((146, y - 18), (146, y - 2), arrow=True)
    for name, loads, begin, end in _CRASHES:
        first, last = (top + 22 + place * pitch for place in (begin, end))
        d.line((306, first), (306, last), kind="range")
        d.text(316, (first + last) / 2 + 5, name, "strong")
        d.text(362, (first + last) / 2 + 5, loads, "small")
    return d.html(
        top + len(_COMMIT_STEPS) * pitch + 10,
        "A is the durable checkpoint, B the new one. The caller hears durable after F2.",
    )


def _compare_crash_states() -> None:
    """The picture has the states of COMMIT.md, no other and none less."""
    spec = (ROOT / "spec/COMMIT.md").read_text()
    there = re.findall(r"^\| (C\d\w?) \|", spec, re.M)
    drawn = [name for name, *_ in _CRASHES]
    if there != drawn:
        raise DocumentationError(f"COMMIT.md has the crash states {there}, the picture {drawn}")


def _recovery() -> str:
    d = Drawing("recovery", "Recovery passes over a torn and a damaged checkpoint")
    d.label(0, 0, 480, 48, "violet", "newest intact superblock", "anchors sequence 61 in slot 0")
    d.text(0, 78, "candidates by sequence, newest first", "small")
    rows = [
        ("red", "sequence 62 · step 610 · slot 1", "header records writing",
         "torn: no candidate", "reported"),
        ("red", "sequence 61 · step 600 · slot 0", "chunk 1 has another digest",
         "damaged: rejected", "reported"),
        ("green", "sequence 60 · step 590 · slot 2", "every chunk has its digest",
         "older: loaded", "verified"),
    ]
    for index, (kind, name, found, verdict, end) in enumerate(rows):
        y = 90 + index * 88
        d.label(0, y, 264, 58, kind, name, found)
        d.line((264, y + 29), (296, y + 29), arrow=True)
        d.text(304, y + 25, verdict, "strong" if kind == "green" else "")
        d.text(304, y + 43, end, "small")
        if index:
            d.line((132, y - 30), (132, y - 2), arrow=True)
            d.text(142, y - 11, "fall back", "small")
    return d.html(
        328, "A load tries one checkpoint after the other, and says why it passed one over."
    )


def _approval() -> str:
    d = Drawing("approval", "Reading in place: training continues, and the save is approved later")
    d.text(110, 14, "training loop", "strong", "middle")
    d.text(370, 14, "PCcheck", "strong", "middle")
    d.line((110, 24), (110, 404), kind="thread")
    d.line((370, 24), (370, 404), kind="thread")
    left = [
        (30, "blue", "save(step)", "notes torch's counts"),
        (108, "paper", "forward, backward", "change no parameter"),
        (186, "amber", "optimizer.step()", "a hook waits: staged?"),
        (298, "paper", "step continues", "may change everything"),
    ]
    for y, kind, name, words in left:
        d.label(10, y, 200, 50, kind, name, words)
    right = [
        (56, "paper", "copies in place", "chunk by chunk"),
        (186, "paper", "staged", "all of it is copied"),
        (264, "violet", "compares the counts", "changed meanwhile?"),
    ]
    for y, kind, name, words in right:
        d.label(270, y, 200, 50, kind, name, words)
    d.line((210, 55), (240, 55), (240, 81), (268, 81), arrow=True)
    d.line((270, 211), (212, 211), arrow=True)
    d.line((110, 236), (110, 296), arrow=True)
    d.line((370, 236), (370, 262), arrow=True)
    d.line((320, 314), (320, 346), arrow=True)
    d.line((420, 314), (420, 346), arrow=True)
    d.label(268, 348, 98, 50, "green", "approve", "seal, commit")
    d.label(374, 348, 98, 50, "red", "reject", "names tensor")
    return d.html(406, "A checkpoint is committed only when nobody changed what it read in place.")


_DRAWINGS: dict[str, Callable[[], str]] = {
    "slots": _slots,
    "pipeline": _pipeline,
    "commit": _commit,
    "recovery": _recovery,
    "approval": _approval,
}
