"""What a check must find, and the order in which it says so.

The tables in `crash.py`, `damage.py`, `rules.py` and `shapes.py` say for each case by hand, or by a
rule that spec/COMMIT.md or spec/PROBLEMS.md gives, what is found. Nothing here looks at a program's
output.
"""

from __future__ import annotations

from dataclasses import dataclass

# Pass by pass, as pcfsck lists them: spec/PROBLEMS.md names what each letter is about.
PASSES = "IBSTCX"
# Within a pass: places in file order come first.
LATE = {"I008": 1, "I011": 1, "I013": 1, "I009": 2, "I010": 3, "B009": 1, "B006": 2, "B010": 3,
        "T003": 1, "T004": 1, "X002": 0, "X003": 1, "X004": 2, "X005": 3, "X001": 4}
SAFE_FIXES = {"I001", "B001", "B007"}
DEFAULT = {"B010": "info", "B004": "info", "S001": "info", "S002": "info", "I009": "warning",
           "I010": "warning", "I011": "warning", "X005": "warning"}


@dataclass(frozen=True)
class Found:
    """A finding: identifier, severity, slot, and the sequence and chunk that order it."""

    id: str
    severity: str
    slot: int | None = None
    sequence: int = 0
    place: int = 0

    @property
    def key(self) -> tuple[int, int, int, int]:
        late = LATE.get(self.id, 0)
        # Payloads are read from the newest checkpoint to the oldest.
        is_by_candidate = self.id in ("T003", "T004") or self.id[0] == "C"
        order = -self.sequence if is_by_candidate else (self.slot or 0) if self.id[0] in "ST" else 0
        return PASSES.index(self.id[0]), late, order, self.place


def found(
    id: str, severity: str | None = None, slot: int | None = None, sequence: int = 0,
    place: int = 0,
) -> Found:
    return Found(id, severity or DEFAULT.get(id, "error"), slot, sequence, place)


@dataclass(frozen=True)
class Resume:
    slot: int
    sequence: int
    step: int
    kind: str = "anchored"


@dataclass
class Case:
    """A damaged file: how it comes from its base, and what is found in it."""

    name: str
    description: str
    base: str
    image: bytearray
    found: list[Found]
    resume: Resume | None
    # `-p` makes nothing, whatever could be fixed: unknown features, a truncated file.
    is_refused: bool = False

    @property
    def left(self) -> list[Found] | None:
        """What `-p` leaves; None when it has nothing to do."""
        left = [item for item in self.ordered if item.id not in SAFE_FIXES]
        return None if self.is_refused or len(left) == len(self.found) else left

    @property
    def ordered(self) -> list[Found]:
        return sorted(self.found, key=lambda item: item.key)

    @property
    def exit_code(self) -> int:
        return 4 if any(item.severity == "error" for item in self.found) else 0
